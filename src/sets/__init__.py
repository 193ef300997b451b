"""Which of ten images is the odd one: frozen or trained features of each image, attention over the set of them."""

from src.lazy import reexport
from src.sets.config import ADJUSTABLE, FOLDERS, REAL, Config

__all__ = ["ADJUSTABLE", "FOLDERS", "REAL", "Config"]
__getattr__ = reexport(
    __name__,
    data="datasets distribution write_mini",
    model="build_model",
    fitting="train",
    evaluation="PROTOCOL evaluate evaluated",
    prediction="predict",
    figures="draw",
)

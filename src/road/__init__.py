"""Unexpected objects on roads: closed-set segmentation, and scores of the pixels that fit none of its classes.

See ``src.system`` for what each system states. Names are imported on first use: its config needs no torch.
"""

from src.lazy import reexport
from src.road.config import ADJUSTABLE, FOLDERS, REAL, Config

__all__ = ["ADJUSTABLE", "FOLDERS", "REAL", "Config"]
__getattr__ = reexport(
    __name__,
    data="datasets distribution write_mini",
    model="build_model from_state_dict",
    fitting="train",
    evaluation="PROTOCOL evaluate evaluated",
    prediction="predict",
    figures="draw",
)

"""Nine kinds of time-series behaviour, predicted from their plots: by the picture, or by the envelope of its line.

See ``src.system`` for what each system states. Names are imported on first use: its config needs no torch.
"""

from src.lazy import reexport
from src.series.config import ADJUSTABLE, FOLDERS, GENERATED, PRETRAINED, REAL, Config

__all__ = ["ADJUSTABLE", "FOLDERS", "GENERATED", "PRETRAINED", "REAL", "Config"]
__getattr__ = reexport(
    __name__,
    csv_files="list_inputs",
    data="CLASSES datasets distribution read_split write_mini",
    evaluation="PROTOCOL evaluate evaluated predict_split",
    figures="draw",
    fitting="train",
    model="build_model build_net",
    prediction="predict",
)

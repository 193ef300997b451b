"""Defects on parts of which only good ones were seen: Uninformed Students (Bergmann et al., arXiv:1911.02357).

The protocol of ``src.system``, and in this system alone ``write_report``.
"""

from src.defects.config import ADJUSTABLE, FOLDERS, REAL, Config
from src.lazy import reexport

__all__ = ["ADJUSTABLE", "FOLDERS", "REAL", "Config"]
__getattr__ = reexport(
    __name__,
    data="datasets distribution write_mini",
    model="build_model",
    fitting="train train_teacher teacher_path",
    evaluation="evaluate evaluated samples PROTOCOL",
    report="predict write_report",
    figures="draw",
)

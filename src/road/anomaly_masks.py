"""How the masks of a set mark anomalies, found out from the values that occur in them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.images import DataError, read_labels

IGNORE = 255
REMAPS: dict[int, dict[int, int]] = {  # by the value that marks an anomaly: value on disk -> label in the sample
    1: {0: 0, 1: 1, IGNORE: IGNORE},
    2: {0: 0, 1: 0, 2: 1, IGNORE: IGNORE},
    255: {0: 0, 255: 1},
}
EXPECTED = "expected 0 for normal pixels, 1 for anomalous and 255 for ignored ones"


def remap_of(paths: Sequence[Path], usual_mark: int) -> dict[int, int]:
    """Value on disk -> 0 normal, 1 anomalous or IGNORE, alike for all masks of a set.

    Anomalies have the value ``usual_mark`` or, if no mask holds it, 1, 2 or 255, which is printed; beside 1 or 2, 255
    is ignored. Raises DataError for other values, where no mask holds an anomaly, and where most of the labelled
    pixels are anomalous, as in inverted masks.
    """
    pixels = np.stack([np.bincount(read_labels(path).ravel(), minlength=256) for path in paths])  # (masks, values)
    holders = {value: paths[(pixels[:, value] > 0).argmax()] for value in np.flatnonzero(pixels.any(0)).tolist()}
    mark = next((value for value in (usual_mark, *REMAPS) if value in holders), None)
    unknown = sorted(holders.keys() - REMAPS[mark or usual_mark].keys())
    if unknown:
        raise DataError(f"{holders[unknown[0]]} holds the label {unknown[0]}: out of range, {EXPECTED}")
    if mark is None:
        raise DataError(f"{paths[0].parent}: {len(paths)} mask(s), and no pixel is marked as anomalous: {EXPECTED}")
    if mark != usual_mark:
        print(f"{holders[mark]}: no mask of the set holds {usual_mark}, so {mark} is read as anomalous")
    if mark == 1 and IGNORE in holders and not (pixels[:, 1] * pixels[:, IGNORE]).any():
        print(f"{holders[IGNORE]} holds 255 and no 1, others hold 1 and no 255: 255 is read as ignored")
    _check_share(paths, anomalous=pixels[:, mark], normal=pixels[:, _normal_values(mark)].sum(1))
    return REMAPS[mark]


def _normal_values(mark: int) -> list[int]:
    return [value for value, label in REMAPS[mark].items() if label == 0]


def _check_share(paths: Sequence[Path], anomalous: np.ndarray, normal: np.ndarray) -> None:
    """Refuse inverted masks, and print the first where only some may be so; pixels of each mask, (masks,)."""
    suspects = np.flatnonzero(anomalous > normal)
    if not len(suspects):
        return
    message = f"{paths[suspects[0]]} marks more than half of its labelled pixels as anomalous"
    if anomalous.sum() > normal.sum():
        raise DataError(f"{message}, and so do all masks together: they seem inverted; {EXPECTED}")
    print(f"{message}, one of {len(suspects)} such mask(s) of {len(paths)}: are they inverted?")

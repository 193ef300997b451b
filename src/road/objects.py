"""What a score makes of whole objects: detections of connected components, and how objects of each size are ranked.

Pixel metrics are ruled by the largest objects; these count every object once. Definitions of sIoU, PPV and F1:
SegmentMeIfYouCan (Chan et al., arXiv:2104.14812), except that the threshold is the calibrated one, not the best on the
test images.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from src.metrics import PixelRanking

SIZES = {"below 0.1 %": 0.001, "0.1 to 1 %": 0.01, "above 1 %": 1.0}  # of the image: largest share of each group
LEVELS = np.arange(0.25, 0.751, 0.05).round(2)  # of sIoU and PPV, over which F1 is averaged
SMALLEST = 0.0005  # share of the image below which a detection is noise: 500 pixels of 1280 x 720


class ObjectMeter:
    """Objects of a split, one image at a time; ``threshold`` None leaves detections out."""

    def __init__(self, threshold: float | None):
        self.threshold = threshold
        self.normal = PixelRanking()
        self.by_size = {size: PixelRanking() for size in SIZES}
        self.siou: list[float] = []
        self.ppv: list[float] = []

    def update(self, score: Tensor, anomaly: Tensor, labelled: Tensor) -> None:
        """One image: a score float32 (H,W), where anomalies are and what is labelled, bool (H,W)."""
        objects, count = ndimage.label(anomaly.cpu().numpy(), np.ones((3, 3)))
        shares = np.bincount(objects.ravel(), minlength=count + 1)[1:] / objects.size
        groups = np.searchsorted(list(SIZES.values()), shares)
        normal = score[labelled & ~anomaly]
        self.normal.update(normal, torch.zeros_like(normal, dtype=torch.bool))
        scores, group = score[anomaly], torch.from_numpy(groups[objects[objects > 0] - 1]).to(score.device)
        for index, ranking in enumerate(self.by_size.values()):
            chosen = scores[group == index]
            ranking.update(chosen, torch.ones_like(chosen, dtype=torch.bool))
        if self.threshold is not None:
            called = ((score >= self.threshold) & labelled).cpu().numpy()
            siou, ppv = compare(objects, _without_specks(called))
            self.siou += siou
            self.ppv += ppv

    def compute(self) -> dict:
        """``by_size``: AUPR of the pixels of objects of that size against all normal ones, with its base rate.

        ``objects``: their number, mean sIoU and PPV, and F1 averaged over ``LEVELS``.
        """
        rows = {}
        for size, ranking in self.by_size.items():
            if ranking.positives:
                pixels = PixelRanking.merged((self.normal, ranking))
                rows[size] = {"aupr": pixels.compute()["aupr"].value, "base_rate": pixels.base_rate}
        if self.threshold is None:
            return {"by_size": rows}
        hits = np.array([sum(value > level for value in self.siou) for level in LEVELS])
        wrong = np.array([sum(value <= level for value in self.ppv) for level in LEVELS])
        f1 = 2 * hits / (len(self.siou) + hits + wrong)
        means = {"siou": float(np.mean(self.siou)), "ppv": float(np.mean(self.ppv)) if self.ppv else 0.0}
        return {"by_size": rows, "objects": {"count": len(self.siou), **means, "f1": float(f1.mean())}}


def compare(objects: np.ndarray, called: np.ndarray) -> tuple[list[float], list[float]]:
    """sIoU of each object, int (H,W) from 1, and PPV of each connected component of ``called``, bool (H,W).

    sIoU: intersection over union with all detections that touch the object, less what they share with other objects.
    PPV: the share of a detection that lies on objects.
    """
    detections, count = ndimage.label(called, np.ones((3, 3)))
    areas = np.bincount(detections.ravel(), minlength=count + 1)
    on_objects = np.bincount(detections[objects > 0], minlength=count + 1)
    siou = []
    for index, place in enumerate(ndimage.find_objects(objects), 1):
        detected = detections[place][objects[place] == index]
        touching = np.unique(detected[detected > 0])
        beside = (areas - on_objects)[touching].sum()
        siou.append(float(np.count_nonzero(detected) / (len(detected) + beside)))
    return siou, (on_objects[1:] / areas[1:]).tolist()


def _without_specks(called: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(called, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    return called & (areas >= SMALLEST * called.size)[labels]

"""AUPRO: how well scores cover every defect region, small ones as much as large ones, at few false positives.

Bergmann et al., "Uninformed Students" (CVPR 2020) and "The MVTec Anomaly Detection Dataset" (IJCV 2021). A region is
an 8-connected component of a mask; its overlap at a threshold is the fraction of its pixels whose score is at least
that. If every anomalous pixel weighs 1 / (pixels of its region), the mean overlap is the weight at or above the
threshold over the number of regions. So the ordered keys of `src.metrics` give the whole curve, in one pass.
"""

import numpy as np
import torch
from scipy import ndimage

from src.metrics import Bounded, ClassTallies, Tally, keys_by_class

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class RegionOverlap(ClassTallies):
    """Per-region overlap (PRO) against the false positive rate over all normal pixels of a split, and its area.

    All pixels of one score are flagged together: a linear segment of the curve.
    """

    def __init__(self, max_bins: int = 1 << 22) -> None:
        super().__init__(max_bins)
        self._weights: list[np.ndarray] = []  # of the pending positives

    def update(self, scores: torch.Tensor | np.ndarray, mask: torch.Tensor | np.ndarray) -> None:
        """Add one image: `scores` float32 (or narrower) and `mask` bool or 0/1, both (H, W); True is anomalous.

        Raises TypeError for float64 scores and ValueError for scores that are not finite (with index and number
        of the call), for other mask values, and for shapes that differ or are not (H, W); nothing is added then.
        """
        self._updates += 1
        keys_by_label = keys_by_class(scores, mask, f"update {self._updates}")
        mask = torch.as_tensor(mask).cpu().numpy().astype(bool)
        if mask.ndim != 2:
            raise ValueError(f"update {self._updates}: shape {mask.shape} is not (H, W); give one image at a time")
        regions = ndimage.label(mask, _EIGHT_CONNECTED)[0][mask]
        self._weights.append(1 / np.bincount(regions)[regions])
        self._gather(*keys_by_label)

    def compute(self, max_fpr: float = 0.3) -> Bounded:
        """AUPRO: the area under the curve from FPR 0 to `max_fpr` over `max_fpr`, with its certified bound.

        NaN without regions or without normal pixels. Raises ValueError if `max_fpr` is not in (0, 1].
        """
        if not 0 < max_fpr <= 1:
            raise ValueError(f"max_fpr={max_fpr} is not a fraction in (0, 1]; 0.3 is usual")
        share, start, stop = self._segments()
        if not len(share):
            return Bounded(float("nan"), float("nan"))
        first, last = np.minimum(start, max_fpr), np.minimum(stop, max_fpr)
        low, high = share @ (max_fpr - last) / max_fpr, share @ (max_fpr - first) / max_fpr
        if self._bits:  # the pixels of a bin may come in any order, the positives first or last
            return Bounded.between(low, high)
        triangle = np.divide((last - first) ** 2, 2 * (stop - start), out=np.zeros_like(share), where=stop > start)
        return Bounded(float(low + share @ triangle / max_fpr), 0.0)

    def curve(self, points: int = 200) -> dict[str, np.ndarray]:
        """Operating points for plots: `fpr` and `pro`, float64 (n,), ascending from (0, 0) to (1, 1).

        At most `points` of them, evenly spread along the curve. Raises ValueError without regions or normal pixels.
        """
        share, start, stop = self._segments()
        if not len(share):
            raise ValueError("a curve needs regions and normal pixels: choose images that hold both")
        fpr = np.r_[0, np.stack([start, stop], axis=1).ravel(), 1]
        pro = np.cumsum(share)
        pro = np.repeat(np.r_[0, pro / pro[-1]], 2)
        at = np.unique(np.searchsorted(fpr + pro, np.linspace(0, 2, points)))
        return {"fpr": fpr[at], "pro": pro[at]}

    @property
    def regions(self) -> int:
        """Number of regions: the pixels of each weigh 1 together."""
        return round(float(self._fold()[1].counts.sum()))

    def _segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rises of the curve by descending score: each one's share of the overlap, and its FPR before and after.

        float64 (bins that hold anomalous pixels,); between them the curve is level. Empty where it is undefined.
        """
        weights, below, upto, normal = self._bins()
        if not len(weights) or not normal:
            return np.empty(0), np.empty(0), np.empty(0)
        return (weights / weights.sum())[::-1], (normal - upto[::-1]) / normal, (normal - below[::-1]) / normal

    def _fold(self) -> list[Tally]:
        """Count the pending positives by weight, then what is left as ever."""
        if self._weights:
            keys, weights = np.concatenate(self._pending[1]), np.concatenate(self._weights)
            self._pending[1].clear()
            self._weights.clear()
            order = np.argsort(keys)
            tally = Tally(keys[order], weights[order]).coarsened(self._bits)
            self._tallies[1] = self._tallies[1].merged(tally)
        return super()._fold()

"""AUPRO: how well scores cover every defect region."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from src.metrics.pixel_ranking import Bounded, Histogram, Steps, checked

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class RegionOverlap(Histogram):
    """AUPRO: how well scores cover every defect region, small ones as much as large ones, at few false positives.

    Bergmann et al., "Uninformed Students" (CVPR 2020) and "The MVTec Anomaly Detection Dataset" (IJCV 2021). A
    region is an 8-connected component of a mask; its overlap (PRO) at a threshold is the fraction of its pixels
    whose score is at least that. Every anomalous pixel weighs 1 / (pixels of its region): then the mean overlap is
    the weight at or above the threshold over the number of regions. All pixels of a bin are flagged together: a
    linear segment of the curve.
    """

    dtype = torch.float64

    def update(self, scores: Tensor | np.ndarray, mask: Tensor | np.ndarray) -> None:
        """Add one image: `scores` float32 (or narrower) and `mask` bool or 0/1, both (H, W); True is anomalous.

        Raises as `PixelRanking.update` does, and ValueError for anything but one image; nothing is added then.
        """
        self._updates += 1
        flat, is_anomaly = checked(scores, mask, f"update {self._updates}")
        if mask.ndim != 2:
            raise ValueError(
                f"update {self._updates}: shape {tuple(mask.shape)} is not (H, W); give one image at a time"
            )
        regions = ndimage.label(is_anomaly.reshape(mask.shape).cpu().numpy(), _EIGHT_CONNECTED)[0].ravel()
        weights = 1 / np.maximum(np.bincount(regions), 1)  # there may be no normal pixel, region 0
        weights[0] = 1
        self._add(flat, is_anomaly, torch.from_numpy(weights[regions]).to(flat.device))

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
        # The pixels of a bin may come in any order, the anomalous ones last or first.
        low, high = share @ (max_fpr - last) / max_fpr, share @ (max_fpr - first) / max_fpr
        triangle = np.divide((last - first) ** 2, 2 * (stop - start), out=np.zeros_like(share), where=stop > start)
        return Bounded.within(low, low + share @ triangle / max_fpr, high)

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
        return round(float(self._counts[:, 1].sum()))

    def _segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rises of the curve by descending score: each one's share of the overlap, and its FPR before and after.

        float64 (bins that hold anomalous pixels,); between them the curve is level. Empty where it is undefined.
        """
        weights, below, upto, normal = Steps.of(*self._by_score())
        if not len(weights) or not normal:
            return np.empty(0), np.empty(0), np.empty(0)
        return (weights / weights.sum())[::-1], (normal - upto[::-1]) / normal, (normal - below[::-1]) / normal

"""How sure a number is: bootstrap intervals over images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from src.metrics.pixel_ranking import checked, ordered_keys

IMAGE_BITS = 16  # of a float32, the highest: what tells the bins of an image's histogram apart


def bootstrap(
    per_image: np.ndarray, statistic: Callable, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of sums over images (Efron, 1979).

    `per_image` (N, ...) holds a sufficient statistic per image: a confusion matrix (K, K), a pair (value, 1)
    whose sums give a mean, or the `ImageHistograms` counts. `statistic` maps its float64 sum (...) over one
    resample to a number, NaN where it has no value (AUPR of a resample without positives). Those resamples are
    left out; if they are more than 5 %, the rest no longer speaks for the split: (NaN, NaN).
    """
    images, *shape = np.shape(per_image)
    rows = np.asarray(per_image, dtype=np.float64).reshape(images, -1)
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    step = max(1, (1 << 23) // rows.shape[1])  # resamples whose sums fit in 64 MB
    blocks = (weights[start : start + step] @ rows for start in range(0, resamples, step))
    values = np.array([statistic(total.reshape(shape)) for block in blocks for total in block])
    values = values[~np.isnan(values)]
    if len(values) < 0.95 * resamples:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The `bootstrap` interval of the mean of values (N,), one for each image."""
    pairs = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], 1)
    return bootstrap(pairs, lambda total: total[0] / total[1])


class ImageHistograms:
    """Sparse score histograms by image, to bootstrap pooled AUPR; 2**(IMAGE_BITS - 9) bins a doubling of score."""

    def __init__(self) -> None:
        self._images: list[tuple[np.ndarray, np.ndarray]] = []  # bins in use (n,), ascending, and counts (2, n)

    def update(self, scores: Tensor, is_anomaly: Tensor) -> None:
        """Add one image, as `PixelRanking.update` would."""
        scores, is_anomaly = checked(scores, is_anomaly, f"image {len(self._images)}")
        bins = (ordered_keys(scores) >> (32 - IMAGE_BITS)) + (1 << IMAGE_BITS - 1)
        counts = torch.bincount(bins + (is_anomaly << IMAGE_BITS), minlength=2 << IMAGE_BITS).reshape(2, -1)
        used = counts.any(0).nonzero()[:, 0]
        self._images.append((used.cpu().numpy(), counts[:, used].cpu().numpy()))

    def counts(self) -> np.ndarray:
        """int64 (N, bins, 2): by image, by ascending bin of those used anywhere, (negatives, positives)."""
        used = np.unique(np.concatenate([bins for bins, _ in self._images]))
        dense = np.zeros((len(self._images), len(used), 2), dtype=np.int64)
        for image, (bins, counts) in zip(dense, self._images, strict=True):
            image[np.searchsorted(used, bins)] = counts.T
        return dense

"""How sure a number is: bootstrap intervals over images, and what of each image they resample."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from src.metrics import Tally, keys_by_class

BITS = 16  # of a float32, the highest: what tells a histogram's bins apart


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


def of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The `bootstrap` interval of the mean of values (N,), one for each image."""
    pairs = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], 1)
    return bootstrap(pairs, lambda total: total[0] / total[1])


class ImageHistograms:
    """Sparse score histograms by image, to bootstrap pooled AUPR; 2**(BITS - 9) bins a doubling of score."""

    def __init__(self) -> None:
        self._images: list[list[Tally]] = []

    def update(self, scores: torch.Tensor, is_anomaly: torch.Tensor) -> None:
        """Add one image, as `PixelRanking.update` would."""
        keys_by_label = keys_by_class(scores, is_anomaly, f"image {len(self._images)}")
        self._images.append([Tally.of(keys >> (32 - BITS)) for keys in keys_by_label])

    def counts(self) -> np.ndarray:
        """int64 (N, bins, 2): by image, by ascending bin of those used anywhere, (negatives, positives)."""
        used = np.unique(np.concatenate([tally.keys for image in self._images for tally in image]))
        dense = np.zeros((len(self._images), len(used), 2), dtype=np.int64)
        for index, image in enumerate(self._images):
            for label, tally in enumerate(image):
                dense[index, np.searchsorted(used, tally.keys), label] = tally.counts
        return dense

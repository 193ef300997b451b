"""How sure a number is: bootstrap intervals over images."""

from collections.abc import Callable, Sequence

import numpy as np

from src.metrics.pixel_ranking import BITS, SortedScores

IMAGE_BITS = 16  # of a float32, the highest: what tells the bins of an image's histogram apart


def bootstrap(
    per_image: np.ndarray, statistic: Callable, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic of sums over images (Efron, 1979).

    `per_image` (N, ...) holds a sufficient statistic per image: a confusion matrix (K, K), a pair (value, 1)
    whose sums give a mean, or the `ImageHistograms` counts. `statistic` maps float64 sums (R, ...) over resamples to
    numbers (R,), NaN where there is no value (AUPR of a resample without positives). Those resamples are left out; if
    they are more than 5 %, the rest no longer speaks for the split: (NaN, NaN).
    """
    images, *shape = np.shape(per_image)
    rows = np.asarray(per_image, dtype=np.float64).reshape(images, -1)
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    step = max(1, (1 << 19) // rows.shape[1])  # resamples whose sums fit in 4 MB: a cache, and few of these arrays
    blocks = (weights[start : start + step] @ rows for start in range(0, resamples, step))
    values = np.concatenate([statistic(block.reshape(-1, *shape)) for block in blocks])
    values = values[~np.isnan(values)]
    if len(values) < 0.95 * resamples:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The `bootstrap` interval of the mean of values (N,), one for each image."""
    pairs = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], 1)
    return bootstrap(pairs, lambda totals: totals[:, 0] / totals[:, 1])


class ImageHistograms:
    """Sparse score histograms by image, to bootstrap pooled AUPR; 2**(IMAGE_BITS - 9) bins a doubling of score."""

    def __init__(self) -> None:
        # Of each image and class, negative and positive: ascending bins in use, and the number of pixels in them
        self._images: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def add(self, image: SortedScores) -> None:
        """Add one image."""
        self._images.append([_coarse(*of_class) for of_class in image.bins])

    def counts(self) -> np.ndarray:
        """int64 (N, bins, 2): by image, by ascending bin of those used anywhere, (negatives, positives)."""
        used = np.unique(np.concatenate([bins for image in self._images for bins, _ in image]))
        dense = np.zeros((len(self._images), len(used), 2), dtype=np.int64)
        for rows, image in zip(dense, self._images, strict=True):
            for label, (bins, counts) in enumerate(image):
                rows[np.searchsorted(used, bins), label] = counts
        return dense


def _coarse(bins: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coarse, place = np.unique(bins >> BITS - IMAGE_BITS, return_inverse=True)
    return coarse, np.bincount(place, counts)

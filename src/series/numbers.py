"""Classify a series from its numbers, without a plot: what a practitioner would do, and the ceiling for the plots.

Summary features under gradient boosted trees. No series is cut or resampled.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from multiprocessing import get_context
from typing import Self

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from tqdm import tqdm

from src import settings
from src.synthetic.time_series import CLASSES, generate

SHORTEST = 50  # samples
BINS = 50  # means of a series that curves are fitted to
FEW = 1000  # series that one process is enough for
LAGS = (1, 2, 3, 4, 5, 8, 12, 20, 30)


def _z(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / (x.std() + 1e-12)


def _size(values: np.ndarray) -> list[float]:
    """Length and scale: not every class of series is normalised."""
    return [np.log(len(values)), np.log(values.std()), values.mean(), values.min(), values.max()]


# -------------------------------------------------------------------------------------- summary features
@cache
def _families() -> dict[str, np.ndarray]:
    """Family of curves on the bins -> orthonormal vectors (K,p,50) that span each of its K curves, but a constant."""
    u = np.linspace(-1, 1, BINS)
    steps, bends = np.float64(u >= u[:, None]), np.maximum(u - u[:, None], 0)  # (50,50): that begin at each of the bins
    families = {
        "line": [[u]],
        "cubic": [[u, u**2, u**3]],
        "exponential": [[np.exp(rate * u)] for rate in (-3, -2.5, -2, -1.5, 1.5, 2, 2.5, 3)],
        "bend": [[u, bend] for bend in bends[3:47]],
        "two_bends": [[u, *pair] for pair in combinations(bends[3:47:2], 2)],
        "three_bends": [[u, *three] for three in combinations(bends[4:47:4], 3)],
        "step": [[step] for step in steps[1:]],
        "bump": [[steps[at] - steps[at + width]] for width in (2, 3, 4, 5) for at in range(1, BINS - width)],
        "two_steps": list(combinations(steps[1:], 2)),
        "three_steps": list(combinations(steps[2::3], 3)),
    }
    columns = {name: np.array([[u**0, *curve] for curve in family]) for name, family in families.items()}
    return {name: np.linalg.qr(c.swapaxes(1, 2))[0].swapaxes(1, 2)[:, 1:] for name, c in columns.items()}


def _fits(x: np.ndarray) -> np.ndarray:
    """R2 of the best curve of each family, its gain over the family before, and the spread of the bins: (20,)."""
    edges = np.linspace(0, len(x), BINS + 1).astype(int)
    bins = np.add.reduceat(x, edges[:-1]) / np.diff(edges)
    bins -= bins.mean()
    energy = bins @ bins + 1e-12
    r2 = [((vectors @ bins) ** 2).sum(1).max() / energy for vectors in _families().values()]
    return np.concatenate([r2, np.diff(r2), [np.log(energy * len(x))]])


def _whitened(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an AR model of up to ten lags leaves of z (n,), standardised, 0 at the first few; and its coefficients."""
    order = min(10, len(z) // 10)
    windows = sliding_window_view(z, order + 1)
    gram = windows.T @ windows
    phi = np.linalg.solve(gram[:-1, :-1] + 1e-6 * len(z) * np.eye(order), gram[:-1, -1])
    return np.concatenate([np.zeros(order), _z(windows[:, -1] - windows[:, :-1] @ phi)]), phi[::-1]


def _outliers(x: np.ndarray) -> list[float]:
    """Moments, quantiles, ends, the largest swings with the gaps between them, and where the largest is: (26,)."""
    x = _z(x)
    top = np.sort(np.partition(abs(x), -6)[-6:])[::-1]
    quantiles = np.quantile(x, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    beyond = top[0] - np.sqrt(2 * np.log(len(x)))  # what the largest of n Gaussian numbers comes to
    moments = [(x**3).mean(), np.log((x**4).mean())]
    ends = [x.min(), x.max()]
    far = [(abs(x) > 3).mean(), (abs(x) > 4).sum()]
    return [*moments, *quantiles, *ends, *top, *(top[:-1] / top[1:]), beyond, abs(x).argmax() / len(x), *far]


def _correlations(x: np.ndarray) -> list[float]:
    x = _z(x)
    return [x[lag:] @ x[:-lag] / len(x) for lag in LAGS]


def _rolling(x: np.ndarray) -> list[float]:
    """Smallest and largest of the rolling mean of x, and where, over 3, 7 and 15 % of its length: (12,)."""
    total, extremes = np.append(0, np.cumsum(x)), []
    for width in (max(3, int(share * len(x))) for share in (0.03, 0.07, 0.15)):
        means = (total[width:] - total[:-width]) / width
        extremes += [means.min(), means.max(), means.argmin() / len(x), means.argmax() / len(x)]
    return extremes


def summary_features(values: np.ndarray) -> np.ndarray:
    """Features float32 (213,) of a series (n,): of itself, and of what an autoregression leaves of it.

    Length and scale; outliers of the series, of the residual, and of the statistic of one additive outlier (Chang, Tiao
    and Chen, 1988); autocorrelations of the series, its differences and the residual's size (volatility); the
    spread of differences by lag (unit roots); extremes of rolling means and variances; and how well trends, bends,
    steps and bumps fit the series, the residual (level) and its size (variance).
    """
    from scipy.signal import lfilter

    z = _z(values)
    e, phi = _whitened(z)
    lone = lfilter(np.append(1, -phi), 1, e[::-1])
    spreads = np.log([np.var(z[lag:] - z[:-lag]) / lag + 1e-12 for lag in (1, 2, 4, 8, 16, 32)])
    parts = [_size(values), [phi.sum(), spreads[0]], np.diff(spreads)]
    parts += [_outliers(x) for x in (z, e, lone)] + [_correlations(x) for x in (z, np.diff(z), abs(e))]
    parts += [_rolling(x) for x in (z, e, e**2)] + [_fits(x) for x in (z, e, abs(e))]
    return np.float32(np.concatenate(parts))


# ------------------------------------------------------------------------------------------- classifiers
class FromNumbers:
    """A classifier of series (n,) of any lengths from 50."""

    def __init__(self, seed: int = settings.SEED) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        self.classifier = HistGradientBoostingClassifier(
            learning_rate=0.15, max_iter=200, early_stopping=True, random_state=seed
        )

    def features(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (N,F). Raises InputError for a series of less than 50 samples; all are finite and not constant."""
        short = [i for i, x in enumerate(series) if len(x) < SHORTEST]
        if short:
            raise settings.InputError(
                f"series {short[0]} is too short: leave out what has less than {SHORTEST} samples"
            )
        return np.stack(_map(summary_features, series, "features"))

    def fit(self, series: Sequence[np.ndarray], labels: np.ndarray) -> Self:
        """Train on N series with labels int (N,), indices into CLASSES, of which some may be missing."""
        self.classifier.fit(self.features(series), labels)
        return self

    def probabilities(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """float64 (N,9); 0 for classes that it was not trained on."""
        probabilities = np.zeros((len(series), len(CLASSES)))
        probabilities[:, self.classifier.classes_] = self.classifier.predict_proba(self.features(series))
        return probabilities


def draw_numbers(split: str, numbers: range, seed: int = settings.SEED) -> tuple[list[np.ndarray], np.ndarray]:
    """Series of these numbers of every class from the generator, float32 (n,) each, and their labels int64 (N,)."""
    tasks = [(label, number, split, seed) for label in CLASSES for number in numbers]
    return _map(_values, tasks, f"drawing {split}"), np.repeat(np.arange(len(CLASSES)), len(numbers))


def _values(task: tuple[str, int, str, int]) -> np.ndarray:
    return np.float32(generate(*task).values)


def _map(function: Callable, items: Sequence, title: str) -> list:
    """The function of every item, in two processes; in this one where there are too few to be worth starting them."""
    if len(items) < FEW:
        return [function(item) for item in items]
    with get_context("spawn").Pool(2, torch.set_num_threads, (1,)) as pool:
        return list(tqdm(pool.imap(function, items, 32), title, len(items), leave=False, disable=None))

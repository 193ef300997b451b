"""How well a score ranks anomalous pixels, in one pass and constant memory.

A ranking counts pixels in the bins of a fixed histogram. A bin is the upper `BITS` bits of a float32, read as an
integer that sorts like the float: 32768 bins a doubling of the score, small or large. So scores are never squashed,
rescaled or clipped, and rare anomalies stay resolved where bins of equal width swallow them. The pixels of a bin
count as ties. Every number comes with a certified bound on what that can change.

Histograms are torch tensors on the device of the first scores. Only the CPU has been verified, not CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

BITS = 24  # of a float32, the highest: what tells the bins of a ranking apart
RECALL = 95  # per cent of the anomalous pixels detected where FPR95 is read
_SLICE = 1 << 18  # pixels turned into bins at a time
_MANTISSA = 23  # bits of a float32; sign and exponent above them make an octave
_OCTAVES = 1 << 32 - _MANTISSA
_BINS = 1 << BITS - 32 + _MANTISSA  # of an octave
_LARGEST_COUNT = torch.iinfo(torch.int32).max  # counts get 64 bits before they exceed it
_LARGEST_KEY = 0x7F7FFFFF  # magnitude bits of the largest finite float32


class Bounded(NamedTuple):
    """A number and a certified bound on |value - exact value| (beyond float64 rounding, about 1e-15)."""

    value: float
    error: float

    @classmethod
    def within(cls, low: float, value: float, high: float) -> Bounded:
        return cls(float(value), float(max(high - value, value - low)))


class Steps(NamedTuple):
    """All the metrics need: the scores (or bins) that hold positives, by ascending score, (steps,)."""

    positives: np.ndarray  # number of them, or their weight
    below: np.ndarray  # negatives that score less
    upto: np.ndarray  # and with those of the same score
    total_negatives: int

    @classmethod
    def of(cls, negatives: np.ndarray, positives: np.ndarray) -> Self:
        """From the counts of every bin, (bins,), by ascending score."""
        upto = np.cumsum(negatives, dtype=np.int64)
        held = np.flatnonzero(positives)
        total = int(upto[-1]) if len(upto) else 0
        return cls(positives[held], upto[held] - negatives[held].astype(np.int64), upto[held], total)


def _metrics(steps: Steps, exact: bool = False) -> dict[str, Bounded]:
    """AUPR, AUROC, FPR95 and best F1 as scikit-learn has them: the pixels of one step tie.

    Unless the steps are `exact`, single scores, the bounds hold for every order of the pixels inside a step. The best
    order puts its positives first, at one score, all with precision tp / (tp + fp_best). The worst puts them last,
    at distinct scores: precision rises concavely up to tp / (tp + fp), so the mean of its first and last values bounds
    its mean from below.
    """
    p, below, upto = (counts[::-1].astype(np.float64) for counts in steps[:3])
    total_p, total_n = int(steps.positives.sum()), steps.total_negatives
    if not total_p or not total_n:
        return dict.fromkeys(("aupr", "auroc", "fpr95", "f1_max"), Bounded(float("nan"), float("nan")))
    tp, fp = np.cumsum(p), total_n - below
    precision = tp / (tp + fp)
    pairs, tied_pairs = float(total_p) * float(total_n), float(p @ (upto - below))
    at = np.searchsorted(tp, -(-RECALL * total_p // 100))
    values = {
        "aupr": p @ precision / total_p,
        "auroc": (p @ below + tied_pairs / 2) / pairs,
        "fpr95": fp[at] / total_n,
        "f1_max": np.max(2 * tp / (tp + fp + total_p)),
    }
    if exact:
        return {name: Bounded(float(value), 0.0) for name, value in values.items()}
    fp_best, first = total_n - upto, tp - p + 1
    bounds = {
        "aupr": (p @ (first / (first + fp) + precision) / 2 / total_p, p @ (tp / (tp + fp_best)) / total_p),
        "auroc": (p @ below / pairs, (p @ below + tied_pairs) / pairs),
        "fpr95": (fp_best[at] / total_n, values["fpr95"]),
        "f1_max": (values["f1_max"], np.max(2 * tp / (tp + fp_best + total_p))),
    }
    return {name: Bounded.within(bounds[name][0], value, bounds[name][1]) for name, value in values.items()}


def metric_from_counts(name: str, counts: np.ndarray) -> np.ndarray:
    """`aupr` or `auroc` of counts (..., bins, 2) by ascending score, float64 (...); a bin's pixels tie.

    Columns are (negatives, positives). NaN without both.
    """
    n, p = np.moveaxis(np.asarray(counts, dtype=np.float64)[..., ::-1, :], -1, 0)
    fp, total_n, total_p = n.cumsum(-1), n.sum(-1), p.sum(-1)
    if name == "aupr":
        tp = p.cumsum(-1)
        sums, total = p * tp / np.maximum(tp + fp, 1), total_p
    else:
        sums, total = p * (total_n[..., None] - fp + n / 2), total_p * total_n
    return np.divide(sums.sum(-1), total, out=np.full(np.shape(total), np.nan), where=total_p * total_n > 0)


class SortedScores:
    """The pixels of one image, sorted once for all that is measured of them.

    `keys`: int32 `ordered_keys` of its negatives and of its positives, ascending. `bins`: of each, the ascending bins
    in use, as the keys' highest `BITS` bits, and the number of its pixels in them.
    """

    def __init__(self, scores: Tensor, is_anomaly: Tensor) -> None:
        """Takes and raises what `PixelRanking.update` does."""
        scores, is_anomaly = checked(scores, is_anomaly, "an image")
        keys, anomalous = ordered_keys(scores).cpu().numpy(), is_anomaly.cpu().numpy()
        self.keys = np.sort(keys[~anomalous]), np.sort(keys[anomalous])
        self.bins = [_runs(keys >> 32 - BITS) for keys in self.keys]

    def ranking(self) -> dict[str, Bounded]:
        """What `PixelRanking.compute` gives for the image alone, exact: every error is 0."""
        negatives, positives = self.keys
        distinct, counts = _runs(positives)
        below, upto = (np.searchsorted(negatives, distinct, side) for side in ("left", "right"))
        return _metrics(Steps(counts, below, upto, len(negatives)), exact=True)

    def reaching(self, threshold: float) -> list[int]:
        """Numbers of negatives and of positives that score at least as much."""
        key = int(ordered_keys(torch.tensor(threshold)))
        return [len(keys) - int(np.searchsorted(keys, key)) for keys in self.keys]


def _runs(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of integers (n,), and how often each occurs."""
    starts = np.flatnonzero(np.diff(ascending, prepend=ascending[:1] - 1))
    return ascending[starts], np.diff(starts, append=len(ascending))


def checked(scores: Any, is_anomaly: Any, call: str) -> tuple[Tensor, Tensor]:
    """Both flat, the labels bool; raises what `PixelRanking.update` says, `call` naming the place."""
    scores, is_anomaly = torch.as_tensor(scores).detach(), torch.as_tensor(is_anomaly)
    if scores.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{call}: scores are {scores.dtype}; cast them with .float(), which may make ties")
    if scores.shape != is_anomaly.shape:
        raise ValueError(f"{call}: scores {tuple(scores.shape)}, is_anomaly {tuple(is_anomaly.shape)} differ")
    flat, labels = scores.reshape(-1), is_anomaly.reshape(-1)
    if len(flat) and not torch.stack(flat.aminmax()).isfinite().all():
        at = int(flat.isfinite().logical_not().nonzero()[0])
        place = ", ".join(str(i) for i in np.unravel_index(at, scores.shape))
        raise ValueError(f"{call}: scores[{place}] is {flat[at].item()}; scores must be finite")
    if labels.dtype != torch.bool:
        unknown = labels[(labels != 0) & (labels != 1)]
        if len(unknown):
            raise ValueError(f"{call}: is_anomaly holds {unknown[0].item()}; drop ignored pixels, use 0 and 1 only")
    return flat, labels.bool()


def ordered_keys(scores: Tensor) -> Tensor:
    """int32 keys that sort like the scores: sign and magnitude become two's complement, so -0 is +0."""
    bits = scores.float().view(torch.int32)
    sign = bits >> 31
    return ((bits & 0x7FFFFFFF) ^ sign) - sign


def _score_of(keys: np.ndarray) -> np.ndarray:
    """float64 scores of ordered keys, held to the largest finite float32."""
    magnitudes = np.minimum(np.abs(keys), _LARGEST_KEY).astype(np.int32).view(np.float32)
    return np.copysign(magnitudes, keys).astype(np.float64)


class Histogram:
    """Pixels by class and bin. Only octaves in use are stored: the bins of scores with one sign and exponent.

    256 KiB an octave, of which a score usually takes 20 to 60; 512 exist.
    """

    dtype = torch.int32

    def __init__(self) -> None:
        self._counts = torch.zeros(0, 2, _BINS, dtype=self.dtype)  # by row of an octave, class and bin
        self._rows = torch.full((_OCTAVES,), -1, dtype=torch.int32)  # of the octaves, -1 where there are no pixels yet
        self._pixels = self._updates = 0

    @classmethod
    def merged(cls, shards: Iterable[Self]) -> Self:
        """The pixels of all shards."""
        total = cls()
        for shard in shards:
            total.merge(shard)
        return total

    def merge(self, other: Self) -> None:
        """Add the pixels of another shard."""
        octaves = other._octaves()
        counts = other._counts[other._rows[octaves].long()]
        self._reserve(other._pixels, counts.device)
        rows = self._rows_of(octaves.to(self._rows.device)).long()
        self._counts[rows] += counts.to(self._counts.device)

    def _add(self, scores: Tensor, is_anomaly: Tensor, weights: Tensor | None = None) -> None:
        """Count checked pixels (n,), each once or by its weight, a slice at a time to bound the memory."""
        for start in range(0, len(scores), _SLICE):
            part = slice(start, start + _SLICE)
            keys = ordered_keys(scores[part])
            self._reserve(len(keys), keys.device)
            self._count(keys >> 32 - BITS, is_anomaly[part], torch.ones(()) if weights is None else weights[part])

    def _count(self, bins: Tensor, is_anomaly: Tensor, amounts: Tensor) -> None:
        """Add amounts to bins (n,), the keys' highest `BITS` bits."""
        bins, labels = bins.to(self._rows.device), is_anomaly.to(self._rows.device)
        rows = self._rows_of((bins >> BITS - 32 + _MANTISSA) + _OCTAVES // 2)
        cells = (rows * 2 + labels) * _BINS + (bins & _BINS - 1)
        amounts = amounts.to(cells.device, self._counts.dtype).expand(len(cells))
        self._counts.view(-1).index_add_(0, cells, amounts)

    def _reserve(self, pixels: int, device: torch.device) -> None:
        """Settle the device with the first pixels, and the width of the counts before they overflow."""
        if not self._pixels:
            self._counts, self._rows = self._counts.to(device), self._rows.to(device)
        self._pixels += pixels
        if self._pixels > _LARGEST_COUNT and self._counts.dtype == torch.int32:
            self._counts = self._counts.long()

    def _rows_of(self, octaves: Tensor) -> Tensor:
        """The rows of octaves (n,) 0..511, made where they are missing."""
        rows = self._rows.index_select(0, octaves)
        if not len(rows) or rows.min() >= 0:
            return rows
        missing, made = octaves[rows < 0].unique(), len(self._octaves())
        last = made + len(missing)
        self._rows[missing.long()] = torch.arange(made, last, dtype=torch.int32, device=rows.device)
        if last > len(self._counts):  # a few more: each time all are copied
            self._counts = torch.cat([self._counts, self._counts.new_zeros(last + 8 - len(self._counts), 2, _BINS)])
        return self._rows.index_select(0, octaves)

    def _octaves(self) -> Tensor:
        """The octaves in use, ascending."""
        return (self._rows >= 0).nonzero()[:, 0]

    def _by_score(self) -> np.ndarray:
        """Counts (2, bins), by ascending score: negatives and positives."""
        rows = self._rows[self._octaves()].long()
        return self._counts.transpose(0, 1)[:, rows].reshape(2, -1).cpu().numpy()

    def _lowest_keys(self, bins: np.ndarray) -> np.ndarray:
        """int64 ordered keys, of the lowest scores of some bins of `_by_score`."""
        octaves = self._octaves().cpu().numpy() - _OCTAVES // 2
        return (octaves[bins // _BINS] << _MANTISSA) + (bins % _BINS << 32 - BITS)

    @property
    def negatives(self) -> int:
        """Number of normal pixels."""
        return int(self._counts[:, 0].sum())


class PixelRanking(Histogram):
    """AUPR, AUROC, FPR95 and best F1 over all pixels of a split, in one pass and constant memory."""

    def update(self, scores: Tensor, is_anomaly: Tensor) -> None:
        """Add pixels: `scores` float32 or narrower, `is_anomaly` bool or 0/1, of one shape, on any device.

        Raises TypeError for float64 scores and ValueError for a NaN or infinite score (with its index and the
        number of the call), for labels other than 0 and 1, and for different shapes; nothing is added then.
        """
        self._updates += 1
        self._add(*checked(scores, is_anomaly, f"update {self._updates}"))

    def add(self, image: SortedScores) -> None:
        """Add an image that was sorted for other numbers too: the same as `update`, faster."""
        self._reserve(sum(map(len, image.keys)), torch.device("cpu"))
        for label, (bins, counts) in enumerate(image.bins):
            self._count(torch.from_numpy(bins), torch.tensor(label), torch.from_numpy(counts))

    def compute(self) -> dict[str, Bounded]:
        """`aupr`, `auroc`, `fpr95` and `f1_max`, each with `.value` and `.error`, its certified bound.

        AUPR is average precision, FPR95 the smallest false positive rate over the thresholds whose recall is
        0.95 or more, F1 its maximum over all thresholds. All are NaN without both classes.
        """
        return _metrics(Steps.of(*self._by_score()))

    def curves(self, points: int = 500) -> dict[str, np.ndarray]:
        """Exact operating points for plots, from threshold +inf to -inf, about `points` evenly over recall.

        `thresholds`, `recall`, `precision` and `fpr`, float64 (n,), where scores >= threshold are called
        anomalous; the threshold where F1 is best is among them. Raises ValueError without both classes.
        """
        negatives, positives = self._by_score()
        steps, total_p = Steps.of(negatives, positives), self.positives
        if not total_p or not steps.total_negatives:
            raise ValueError("curves need anomalous and normal pixels: choose images that hold both")
        tp, fp = np.cumsum(steps.positives[::-1], dtype=np.int64), steps.total_negatives - steps.below[::-1]
        best = int(np.argmax(tp / (tp + fp + total_p)))
        chosen = np.unique(np.append(np.searchsorted(tp, np.linspace(1, total_p, points)), best))
        thresholds = _score_of(self._lowest_keys(np.flatnonzero(positives)[::-1][chosen]))
        tp, fp = tp[chosen], fp[chosen]
        return {
            "thresholds": np.r_[np.inf, thresholds, -np.inf],
            "recall": np.r_[0.0, tp / total_p, 1.0],
            "precision": np.r_[1.0, tp / (tp + fp), self.base_rate],
            "fpr": np.r_[0.0, fp / steps.total_negatives, 1.0],
        }

    def quantile(self, q: float) -> float:
        """The smallest score that at least a fraction `q` of the negatives do not exceed (a bin's upper end).

        As a threshold it needs no anomalies: at most 1 - q of the negatives score above it. Raises ValueError
        if q is outside 0..1 or there are no negatives.
        """
        total = self.negatives
        if not 0 <= q <= 1 or not total:
            raise ValueError(f"quantile({q}) of {total} negatives: needs 0 <= q <= 1 and a negative")
        upto = np.cumsum(self._by_score()[0], dtype=np.int64)
        lowest = self._lowest_keys(np.searchsorted(upto, max(1.0, q * total)))
        return float(_score_of(lowest + (1 << 32 - BITS) - 1))

    @property
    def positives(self) -> int:
        """Number of anomalous pixels."""
        return int(self._counts[:, 1].sum())

    @property
    def base_rate(self) -> float:
        """Fraction of the pixels that are anomalous, the AUPR of a random score; NaN without pixels."""
        return self.positives / self._pixels if self._pixels else float("nan")

"""How well a segmentation fits, and how well a score ranks anomalous pixels.

Everything here is a sufficient statistic: updated image by image, merged over shards or ranks, and turned
into numbers once, over the whole split; nothing is a mean of batch means. A pixel ranking counts *ordered
keys*: the 32 bits of a float32, read as an integer that sorts like the float. So scores are never squashed,
rescaled or clipped, and two scores tie only if they are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy import ndimage
from torch import distributed

_SLICE = 1 << 20  # pixels turned into keys at a time
_PENDING = 1 << 23  # pixels gathered before they are sorted and counted
_INFINITE = 0x7F800000  # magnitude bits from which a float32 is infinite or NaN
_RECALL = 95  # per cent of the anomalous pixels found where FPR95 is read


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """IoU of every class, float64 (K,), from a confusion matrix (K, K) whose rows are the truth.

    NaN for a class that the truth does not hold, even if predicted: the split cannot measure it. The pixels
    wrongly given to it still count, as misses of their true classes.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    truth, hits = matrix.sum(axis=1), np.diagonal(matrix)
    union = truth + matrix.sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(len(matrix), np.nan), where=truth > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean of `class_iou` over the classes that the truth holds; NaN if it holds none."""
    return float(np.nanmean(class_iou(matrix))) if np.any(matrix) else float("nan")


class ConfusionMatrix:
    """Pixel counts over a whole split; `matrix` is int64 (K, K), rows = truth, columns = prediction."""

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count the pixels of int64 `prediction` and `target`, of one shape, whose target is not `ignore`.

        Raises ValueError if the shapes differ or a counted pixel holds anything but 0..num_classes-1.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ")
        counted = target != self.ignore
        truth, guess = target[counted], prediction[counted]
        for name, labels in (("target", truth), ("prediction", guess)):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)]
            if len(wrong):
                known = f"classes are 0..{self.num_classes - 1}, only a target {self.ignore} is ignored"
                raise ValueError(f"{name} holds the label {wrong[0].item()}: {known}; remap the labels first")
        pairs = (truth.long() * self.num_classes + guess).cpu().numpy()
        self.matrix += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.matrix.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another shard."""
        self.matrix += other.matrix

    def all_reduce(self) -> None:
        """Sum over all ranks, once, at the end; without a process group there is nothing to do."""
        self.matrix = sum(_from_every_rank(self.matrix))

    def compute(self) -> dict[str, Any]:
        """`miou` and `pixel_accuracy`, fractions, and `iou`, a list of K; `class_iou` explains the NaNs."""
        total, iou = int(self.matrix.sum()), class_iou(self.matrix).tolist()
        accuracy = float(np.trace(self.matrix)) / total if total else float("nan")
        return {"miou": mean_iou(self.matrix), "pixel_accuracy": accuracy, "iou": iou}


def _from_every_rank(state: Any) -> Iterator[Any]:
    """Yield each rank's `state` in rank order, one in memory at a time; just ours without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        yield state
        return
    for source in range(distributed.get_world_size()):
        box = [state if distributed.get_rank() == source else None]
        distributed.broadcast_object_list(box, src=source)
        yield box[0]


def _ordered_keys(scores: np.ndarray) -> np.ndarray:
    """int32 keys that sort like float32 scores: sign and magnitude become two's complement, so -0 is +0."""
    bits = scores.view(np.int32)
    sign = bits >> 31
    return ((bits & 0x7FFFFFFF) ^ sign) - sign


def _scores_of(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of int64 ordered keys, held to the largest finite float."""
    magnitude = np.minimum(np.abs(keys), _INFINITE - 1).astype(np.int32).view(np.float32)
    return np.where(keys < 0, -magnitude, magnitude)


def keys_by_class(scores: Any, is_anomaly: Any, call: str) -> list[np.ndarray]:
    """The int32 keys of [negatives, positives], each in row-major order; `call` names the place in the errors."""
    scores, is_anomaly = torch.as_tensor(scores).detach(), torch.as_tensor(is_anomaly)
    if scores.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{call}: scores are {scores.dtype}; cast them with .float(), which may make ties")
    if scores.shape != is_anomaly.shape:
        raise ValueError(f"{call}: scores {tuple(scores.shape)}, is_anomaly {tuple(is_anomaly.shape)} differ")
    flat_scores, flat_labels, slices = scores.reshape(-1), is_anomaly.reshape(-1), []
    for start in range(0, max(1, len(flat_scores)), _SLICE):
        keys = _ordered_keys(flat_scores[start : start + _SLICE].float().cpu().numpy())
        labels = flat_labels[start : start + _SLICE].cpu().numpy()
        if keys.max(initial=0) >= _INFINITE or keys.min(initial=0) <= -_INFINITE:
            at = start + int(np.argmax((keys >= _INFINITE) | (keys <= -_INFINITE)))
            place = ", ".join(str(i) for i in np.unravel_index(at, scores.shape))
            raise ValueError(f"{call}: scores[{place}] is {flat_scores[at].item()}; scores must be finite")
        if labels.dtype != bool and len(unknown := labels[(labels != 0) & (labels != 1)]):
            raise ValueError(f"{call}: is_anomaly holds {unknown[0]}; drop ignored pixels, use 0 and 1 only")
        slices.append((keys[labels == 0], keys[labels == 1]))
    return [np.concatenate(keys) for keys in zip(*slices, strict=True)]


def _run_starts(ascending: np.ndarray) -> np.ndarray:
    """Indices at which a new value starts."""
    new = np.ones(len(ascending), dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    return np.flatnonzero(new)


class Tally(NamedTuple):
    """A multiset of keys: the distinct ones, int32 ascending, and how often each occurs, int64, or its weight."""

    keys: np.ndarray = np.empty(0, np.int32)
    counts: np.ndarray = np.empty(0, np.int64)

    @classmethod
    def of(cls, keys: np.ndarray) -> Tally:
        """Count unsorted `keys`, which are sorted in place."""
        keys.sort()
        starts = _run_starts(keys)
        return cls(keys[starts], np.diff(starts, append=len(keys)))

    def merged(self, other: Tally) -> Tally:
        if not len(self.keys):
            return other
        at = np.searchsorted(self.keys, other.keys)
        known = np.take(self.keys, at, mode="clip") == other.keys
        counts = self.counts.copy()
        counts[at[known]] += other.counts[known]
        at, keys, new_counts = at[~known], other.keys[~known], other.counts[~known]
        return Tally(np.insert(self.keys, at, keys), np.insert(counts, at, new_counts))

    def coarsened(self, bits: int) -> Tally:
        """Merge all keys, also repeated ones, that differ in their lowest `bits` bits only."""
        keys = self.keys >> bits
        starts = _run_starts(keys)
        return Tally(keys[starts], np.add.reduceat(self.counts, starts))


class Bounded(NamedTuple):
    """A number and a certified bound on |value - exact value| (beyond float64 rounding, about 1e-15)."""

    value: float
    error: float

    @classmethod
    def between(cls, low: float, high: float) -> Bounded:
        return cls(float(low + high) / 2, float(high - low) / 2)


class _Bins(NamedTuple):
    """All the metrics need: the bins that hold positives, by ascending score, int64 (bins,)."""

    positives: np.ndarray  # in the bin
    below: np.ndarray  # negatives under the bin
    upto: np.ndarray  # negatives under the bin and in it
    total_negatives: int


def _metrics(bins: _Bins, exact: bool) -> dict[str, Bounded]:
    """AUPR, AUROC, FPR95 and best F1, with bounds that hold for every order of the pixels inside a bin.

    `exact` says that a bin is one score, so that its pixels are true ties, treated as scikit-learn does: one
    threshold for all, hence one precision (step-wise average precision) and a diagonal ROC segment. Otherwise
    the best order puts a bin's positives first, at one score, all with precision tp / (tp + fp_best). The
    worst puts them last, at distinct scores: precision rises concavely up to tp / (tp + fp), so the mean of
    its first and last values bounds its mean from below.
    """
    p, below, upto = (counts[::-1].astype(np.float64) for counts in bins[:3])
    total_p, total_n = int(bins.positives.sum()), bins.total_negatives
    if not total_p or not total_n:
        return dict.fromkeys(("aupr", "auroc", "fpr95", "f1_max"), Bounded(float("nan"), float("nan")))
    tp, fp = np.cumsum(p), total_n - below
    fp_best, tp_first = (fp, tp) if exact else (total_n - upto, tp - p + 1)
    best_precision = tp / (tp + fp_best)
    worst_precision = (tp_first / (tp_first + fp) + tp / (tp + fp)) / 2
    at = np.searchsorted(tp, -(-_RECALL * total_p // 100))
    pairs, tied_pairs = float(total_p) * float(total_n), float(p @ (upto - below))
    won_pairs = float(p @ below) + tied_pairs / 2
    return {
        "aupr": Bounded.between(p @ worst_precision / total_p, p @ best_precision / total_p),
        "auroc": Bounded(won_pairs / pairs, 0.0 if exact else tied_pairs / 2 / pairs),
        "fpr95": Bounded.between(fp_best[at] / total_n, fp[at] / total_n),
        "f1_max": Bounded.between(*(np.max(2 * tp / (tp + f + total_p)) for f in (fp, fp_best))),
    }


def ranking(scores: torch.Tensor, is_anomaly: torch.Tensor) -> dict[str, Bounded]:
    """`PixelRanking.compute` for one image, exact (every error is 0), from one sort; same exceptions."""
    negatives, positives = keys_by_class(scores, is_anomaly, "ranking")
    negatives.sort()
    tally = Tally.of(positives)
    below, upto = (np.searchsorted(negatives, tally.keys, side) for side in ("left", "right"))
    return _metrics(_Bins(tally.counts, below, upto, len(negatives)), exact=True)


class ClassTallies:
    """The ordered keys of negatives and positives, counted in constant memory: base of the streamed metrics.

    Up to `max_bins` distinct keys, metrics are exact. Then the lowest bit of every key is dropped, neighbours merge,
    and metrics carry a certified bound: a bin's scores differ by less than a fraction 2**(bits - 23), small or large,
    so rare positives stay resolved where equal-width bins swallow them. By default 50 MB at rest, 0.5 GB at the peak.
    """

    def __init__(self, max_bins: int = 1 << 22) -> None:
        if max_bins < 4:
            raise ValueError(f"max_bins={max_bins}: two classes times two signs need 4 bins or more")
        self.max_bins = max_bins
        self._tallies = [Tally(), Tally()]  # of the negatives and the positives
        self._pending: list[list[np.ndarray]] = [[], []]
        self._pending_pixels = self._updates = self._bits = 0  # bits: dropped from every key so far

    def merge(self, other: Self) -> None:
        """Add the pixels of another shard; the coarser of the two resolutions is kept."""
        theirs = other._fold()
        self._coarsen(max(0, other._bits - self._bits))
        for label, tally in enumerate(theirs):
            self._tallies[label] = self._tallies[label].merged(tally.coarsened(self._bits - other._bits))
        self._fold()

    def all_reduce(self) -> None:
        """Pool the pixels of all ranks, once, at the end; without a process group there is nothing to do."""
        self._fold()
        total = type(self)(self.max_bins)
        for other in _from_every_rank(self):
            total.merge(other)
        self._tallies, self._bits = total._tallies, total._bits

    def _gather(self, *keys_by_label: np.ndarray) -> None:
        """Keep the keys of both classes until they are worth a sort."""
        for pending, keys in zip(self._pending, keys_by_label, strict=True):
            pending.append(keys)
            self._pending_pixels += len(keys)
        if self._pending_pixels >= _PENDING:
            self._fold()

    def _bins(self) -> _Bins:
        negatives, positives = self._fold()
        cumulative = np.append(0, np.cumsum(negatives.counts))
        sides = (np.searchsorted(negatives.keys, positives.keys, side) for side in ("left", "right"))
        return _Bins(positives.counts, *(cumulative[side] for side in sides), int(cumulative[-1]))

    def _fold(self) -> list[Tally]:
        """Count the pending keys, coarsen until the bins are few enough, and return the tallies."""
        for label, pending in enumerate(self._pending):
            if pending:
                keys = np.concatenate(pending)
                pending.clear()
                keys >>= self._bits
                self._tallies[label] = self._tallies[label].merged(Tally.of(keys))
        self._pending_pixels = 0
        while sum(len(tally.keys) for tally in self._tallies) > self.max_bins:
            self._coarsen(1)
        return self._tallies

    def _coarsen(self, bits: int) -> None:
        self._bits += bits
        self._tallies = [tally.coarsened(bits) for tally in self._tallies]


class PixelRanking(ClassTallies):
    """AUPR, AUROC, FPR95 and best F1 over all pixels of a split, in one pass and constant memory."""

    def update(self, scores: torch.Tensor, is_anomaly: torch.Tensor) -> None:
        """Add pixels: `scores` float32 or narrower, `is_anomaly` bool or 0/1, of one shape, on any device.

        Raises TypeError for float64 scores and ValueError for a NaN or infinite score (with its index and the
        number of the call), for labels other than 0 and 1, and for different shapes; nothing is added then.
        """
        self._updates += 1
        self._gather(*keys_by_class(scores, is_anomaly, f"update {self._updates}"))

    def compute(self) -> dict[str, Bounded]:
        """`aupr`, `auroc`, `fpr95` and `f1_max`, each with `.value` and `.error`, its certified bound.

        AUPR is average precision, FPR95 the smallest false positive rate over the thresholds whose recall is
        0.95 or more, F1 its maximum over all thresholds. All are NaN without both classes.
        """
        return _metrics(self._bins(), exact=self._bits == 0)

    def curves(self, points: int = 500) -> dict[str, Any]:
        """Exact operating points for plots, from threshold +inf to -inf, about `points` evenly over recall.

        `thresholds`, `recall`, `precision` and `fpr`, float64 (n,), where scores >= threshold are called
        anomalous; the threshold where F1 is best is among them. Raises ValueError without both classes.
        """
        bins = self._bins()
        total_p, total_n = self.positives, bins.total_negatives
        if not total_p or not total_n:
            raise ValueError("curves need anomalous and normal pixels: choose images that hold both")
        tp, fp = np.cumsum(bins.positives[::-1]), total_n - bins.below[::-1]
        best = int(np.argmax(tp / (tp + fp + total_p)))
        chosen = np.unique(np.append(np.searchsorted(tp, np.linspace(1, total_p, points)), best))
        lower_ends = self._tallies[1].keys[::-1].astype(np.int64) << self._bits
        thresholds, tp, fp = _scores_of(lower_ends).astype(float), tp[chosen], fp[chosen]
        return {
            "thresholds": np.r_[np.inf, thresholds[chosen], -np.inf],
            "recall": np.r_[0.0, tp / total_p, 1.0],
            "precision": np.r_[1.0, tp / (tp + fp), self.base_rate],
            "fpr": np.r_[0.0, fp / total_n, 1.0],
        }

    def quantile(self, q: float) -> float:
        """The smallest score that at least a fraction `q` of the negatives do not exceed (a bin's upper end).

        As a threshold it needs no anomalies: at most 1 - q of the negatives score above it. Raises ValueError
        if q is outside 0..1 or there are no negatives.
        """
        if not 0 <= q <= 1 or not self.negatives:
            raise ValueError(f"quantile({q}) of {self.negatives} negatives: needs 0 <= q <= 1 and a negative")
        keys, counts = self._tallies[0]
        at = np.searchsorted(np.cumsum(counts), max(1.0, q * self.negatives))
        return float(_scores_of(((keys[at].astype(np.int64) + 1) << self._bits) - 1))

    @property
    def negatives(self) -> int:
        """Number of normal pixels."""
        return int(self._fold()[0].counts.sum())

    @property
    def positives(self) -> int:
        """Number of anomalous pixels."""
        return int(self._fold()[1].counts.sum())

    @property
    def base_rate(self) -> float:
        """Fraction of the pixels that are anomalous, the AUPR of a random score; NaN without pixels."""
        total = self.positives + self.negatives
        return self.positives / total if total else float("nan")


def metric_from_counts(name: str, counts: np.ndarray) -> float:
    """`aupr`, `auroc`, `fpr95` or `f1_max` of counts (bins, 2) by ascending score; a bin's pixels tie.

    Columns are (negatives, positives).
    """
    upto = np.cumsum(counts[:, 0])
    held = counts[:, 1] > 0
    bins = _Bins(counts[held, 1], (upto - counts[:, 0])[held], upto[held], int(upto[-1]))
    return _metrics(bins, exact=True)[name].value


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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
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

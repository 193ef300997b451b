"""Anomaly scores from the logits of a closed-set segmentation network.

Every score maps logits (B, C, H, W) to float32 (B, H, W), **higher where the pixel is more anomalous**. Any
float dtype is cast to float32, inputs are never modified, gradients are not supported.

Sources: maximum softmax probability, Hendrycks & Gimpel, ICLR 2017; max logit, Hendrycks et al., ICML 2022
(arXiv:1911.11132); energy, Liu et al., NeurIPS 2020; standardized max logits (SML) with boundary suppression
and dilated smoothing, Jung et al., ICCV 2021 (arXiv:2107.11264).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# A class predicted on fewer training pixels than this has no trustworthy mean and standard deviation.
MIN_PIXELS = 100
# Rows of a Cityscapes image: what the published suppression radii and smoothing dilation were chosen for.
REFERENCE_HEIGHT = 1024
STRIP = 32  # rows of an image whose softmax is computed at a time: what fits in a cache takes half the time
# Shares of normal pixels at which `rarity` knows how high a score is.
TAIL_SHARES = (1.0, 0.95, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0001)


# ------------------------------------------------------------------------------------- simple scores
class Logits:
    """Logits (B, C, H, W) in float32, with what several scores are made of; each part is computed once."""

    def __init__(self, values: Tensor):
        self.values = values.detach().float()

    @classmethod
    def of(cls, logits: "Tensor | Logits") -> "Logits":
        return logits if isinstance(logits, cls) else cls(logits)

    @cached_property
    def _largest(self) -> tuple[Tensor, Tensor]:
        return self.values.max(dim=1)

    @property
    def maximum(self) -> Tensor:
        """The largest logit of each pixel, (B, H, W)."""
        return self._largest[0]

    @property
    def prediction(self) -> Tensor:
        """Its class, int64 (B, H, W)."""
        return self._largest[1]

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        parts = (self.values, self.maximum, self.prediction)
        sums = []
        for values, maximum, prediction in zip(*(part.split(STRIP, -2) for part in parts), strict=True):
            shifted = values - maximum[:, None]
            exponentials = shifted.exp().scatter_(1, prediction[:, None], 0.0)
            sums.append(torch.stack([exponentials.sum(1), (exponentials * shifted).sum(1)]))
        others, weighted = torch.cat(sums, -2)
        return others, weighted

    @property
    def others(self) -> Tensor:
        """Sum of exp() of the logits minus their maximum, without the maximum's own 1, which drowns the rest."""
        return self._sums[0]

    @property
    def weighted(self) -> Tensor:
        """The same sum, each term times its logit minus the maximum; both (B, H, W)."""
        return self._sums[1]


def msp(logits: Tensor | Logits) -> Tensor:
    """One minus the maximum softmax probability, summed from the others to be exact near 0; (B, H, W)."""
    others = Logits.of(logits).others
    return others / (1 + others)


def max_logit(logits: Tensor | Logits) -> Tensor:
    """Minus the largest logit; (B, C, H, W) -> (B, H, W)."""
    return -Logits.of(logits).maximum


def entropy(logits: Tensor | Logits) -> Tensor:
    """Entropy of the softmax in nats, in [0, ln C]; (B, C, H, W) -> (B, H, W)."""
    logits = Logits.of(logits)
    return logits.others.log1p() - logits.weighted / (1 + logits.others)


def energy(logits: Tensor | Logits) -> Tensor:
    """Free energy at temperature 1, -ln(sum(exp(logits))); (B, C, H, W) -> (B, H, W)."""
    logits = Logits.of(logits)
    return -(logits.maximum + logits.others.log1p())


def combined(logits: Tensor | Logits, outlier: Tensor, tails: Mapping[str, Sequence[float]]) -> Tensor:
    """The larger `rarity` of the outlier head's score and energy; (B, H, W).

    The head finds texture and colour that no training image has, energy what resembles no known class: a pixel is as
    anomalous as the more surprised of the two says. `tails`: what `rarity` takes, of "outlier" and "energy".
    """
    return torch.maximum(rarity(outlier, tails["outlier"]), rarity(energy(logits), tails["energy"]))


def rarity(score: Tensor, tail: Sequence[float]) -> Tensor:
    """Minus the natural log of the share of normal pixels that score as high; any shape, float32.

    `tail`: the scores that `TAIL_SHARES` of the normal pixels reach, ascending.
    """
    points = torch.tensor(tail, dtype=torch.float32, device=score.device)
    heights = -torch.tensor(TAIL_SHARES, dtype=torch.float32, device=score.device).log()
    slopes = heights.diff() / points.diff().clamp(min=1e-6)
    left = sum((score > point for point in points[1:-1]), torch.zeros_like(score, dtype=torch.uint8)).int()
    return (_at(heights, left) + _at(slopes, left) * (score - _at(points, left))).clamp(min=0)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """values[index], several times faster."""
    return values.index_select(0, index.flatten()).view(index.shape)


SCORES = {"msp": msp, "max_logit": max_logit, "entropy": entropy, "energy": energy}


# ------------------------------------------------------------------------- standardized max logits (SML)
class ClassStatistics:
    """Mean and standard deviation of the max logit per *predicted* class, streamed in float64.

    For the training images' full-resolution logits.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self._sums = torch.zeros(3, num_classes, dtype=torch.float64)  # of 1, the max logit and its square

    def update(self, logits: Tensor | Logits) -> None:
        """Add every pixel of logits (B, C, H, W). Raises ValueError if C is not `num_classes`."""
        logits = Logits.of(logits)
        if logits.values.shape[1] != self.num_classes:
            raise ValueError(f"logits have {logits.values.shape[1]} classes, the statistics {self.num_classes}")
        maximum = logits.maximum.flatten().double()
        powers = torch.stack((torch.ones_like(maximum), maximum, maximum.square()))
        # index_add, unlike bincount, also runs on CUDA under torch.use_deterministic_algorithms.
        sums = powers.new_zeros(3, self.num_classes).index_add(1, logits.prediction.flatten(), powers)
        self._sums += sums.cpu()

    def compute(self) -> dict[str, Tensor]:
        """`mean` and `std` (float32) and `count` (int64), each (C,) on the CPU, ready for a checkpoint.

        A class predicted on fewer than `MIN_PIXELS` pixels, or whose max logit varies by no more than float32
        rounding, takes the mean and (population) std over the pixels of all classes; `count` stays its own.
        Raises ValueError if no pixel was seen, all max logits are equal, or one is not finite.
        """
        mean, std = _mean_and_std(self._sums)
        pooled_mean, pooled_std = _mean_and_std(self._sums.sum(1))
        count, rounding = self._sums[0], torch.finfo(torch.float32).eps
        if not pooled_std > rounding * pooled_mean.abs():  # NaN, from no or non-finite logits, is caught too
            raise ValueError(f"no finite spread in {int(count.sum())} pixels: update() with training images first")
        unusable = (count < MIN_PIXELS) | (std <= rounding * mean.abs())
        mean, std = torch.where(unusable, pooled_mean, mean), torch.where(unusable, pooled_std, std)
        return {"mean": mean.float(), "std": std.float(), "count": count.long()}


def _mean_and_std(sums: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def standardized_max_logits(logits: Tensor | Logits, statistics: Mapping[str, Tensor]) -> Tensor:
    """Minus the max logit standardized for the predicted class c, -(max - mean_c) / std_c; (B, H, W).

    `statistics` is what `ClassStatistics.compute` returned. Raises ValueError if its classes are not C.
    """
    logits = Logits.of(logits)
    mean, std = (statistics[key].to(logits.values.device, torch.float32) for key in ("mean", "std"))
    if len(mean) != logits.values.shape[1]:
        raise ValueError(f"statistics of {len(mean)} classes, logits of {logits.values.shape[1]}: not one model's")
    return (_at(mean, logits.prediction) - logits.maximum) / _at(std, logits.prediction)


def _fold3(x: Tensor, dim: int, operation: Callable[..., Tensor]) -> Tensor:
    """Combine each element with its two neighbours along `dim`, edges replicated; far faster than pooling."""
    last, folded = x.shape[dim] - 1, x.clone()
    for target, source, length in ((1, 0, last), (0, 1, last), (0, 0, 1), (last, last, 1)):
        view = folded.narrow(dim, target, length)
        operation(view, x.narrow(dim, source, length), out=view)
    return folded


def _fold_cross(x: Tensor, operation: Callable[..., Tensor]) -> Tensor:
    return operation(_fold3(x, -1, operation), _fold3(x, -2, operation))


def _fold_square(x: Tensor, operation: Callable[..., Tensor]) -> Tensor:
    return _fold3(_fold3(x, -1, operation), -2, operation)


def find_boundaries(prediction: Tensor) -> Tensor:
    """Where grey-scale dilation by a 3x3 cross and erosion by a 3x3 square disagree; bool (B, H, W).

    Indices 0..255 act as heights, as published: a diagonal neighbour counts only if lower. Borders do not.
    """
    classes = prediction.to(torch.uint8)
    return _fold_cross(classes, torch.maximum) != _fold_square(classes, torch.minimum)


def suppress_boundaries(score: Tensor, prediction: Tensor, radii: Sequence[int] = (3, 2, 1, 0)) -> Tensor:
    """Iterative boundary suppression: replace the scores at class boundaries by those just outside.

    One round per radius: the pixels of the boundary of `prediction`, grown by an L1 ball (diamond) of that
    radius, become the mean of the others in their 3x3 window (edges replicated, as published), or stay if
    there are none. Radii should fall by one, so that the rim repaired in one round is the source of the next.

    score and integer prediction (B, H, W), radii in pixels; float32 (B, H, W). ValueError if shapes differ.
    """
    if score.shape != prediction.shape:
        raise ValueError(f"score is {tuple(score.shape)} but prediction {tuple(prediction.shape)}")
    grown = [find_boundaries(prediction)]
    for _ in range(max(radii, default=0)):  # the diamond of radius r is r dilations by the 3x3 cross
        grown.append(_fold_cross(grown[-1], torch.maximum))
    score = score.detach().float()
    for boundary in [grown[radius] for radius in radii]:
        total = _fold_square(score.masked_fill(boundary, 0.0), torch.add)
        count = _fold_square((~boundary).to(torch.uint8), torch.add)
        score = torch.where(boundary & (count > 0), total.div_(count), score)
    return score


def dilated_smoothing(score: Tensor, kernel: int = 7, sigma: float = 1.0, dilation: int = 6) -> Tensor:
    """Smooth with a dilated Gaussian, edges replicated; (B, H, W) -> (B, H, W) float32.

    `kernel` (odd, else ValueError) and `sigma` in taps, `dilation` in pixels a tap. Separable, so two passes.
    """
    if kernel % 2 == 0:
        raise ValueError(f"the smoothing kernel must have an odd number of taps, not {kernel}")
    half = kernel // 2
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-half, half + 1)]
    smoothed = F.pad(score.detach().float(), [half * dilation] * 4, mode="replicate")
    for dim in (-1, -2):
        padded, size = smoothed, score.shape[dim]
        smoothed = torch.zeros_like(padded.narrow(dim, 0, size))
        for index, tap in enumerate(taps):
            smoothed.add_(padded.narrow(dim, index * dilation, size), alpha=tap / sum(taps))
    return smoothed


def scaled_radii(height: int) -> tuple[int, ...]:
    """Suppression radii for `height` image rows: (3, 2, 1, 0) at `REFERENCE_HEIGHT`, never fewer than (0,).

    Only the largest scales; they still fall by one, because each round carries scores one pixel further in.
    """
    return tuple(range(int(3 * height / REFERENCE_HEIGHT + 0.5), -1, -1))


def scaled_dilation(height: int) -> int:
    """Smoothing dilation for `height` image rows: 6 at `REFERENCE_HEIGHT`, never below 1."""
    return max(1, int(6 * height / REFERENCE_HEIGHT + 0.5))


def sml(
    logits: Tensor | Logits,
    statistics: Mapping[str, Tensor],
    *,
    suppress: bool = True,
    smooth: bool = True,
    scale: bool = True,
) -> Tensor:
    """Minus the standardized max logit, boundary-suppressed and smoothed; (B, C, H, W) -> (B, H, W).

    Radii and dilation are those for H rows; without `scale` the published (3, 2, 1, 0) and 6.
    """
    logits = Logits.of(logits)
    score = standardized_max_logits(logits, statistics)
    height = score.shape[-2] if scale else REFERENCE_HEIGHT
    if suppress:
        score = suppress_boundaries(score, logits.prediction, scaled_radii(height))
    return dilated_smoothing(score, dilation=scaled_dilation(height)) if smooth else score


# ---------------------------------------------------------------------------------------- all by name
def score_maps(
    logits: Tensor | Logits,
    statistics: Mapping[str, Tensor] | None = None,
    names: Iterable[str] = tuple(SCORES),
    outlier: Tensor | None = None,
    tails: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Tensor]:
    """Scores by name, each (B, H, W): those of `SCORES`, "sml_raw" (standardized only), "sml" (in full), "outlier" and
    "combined".

    `outlier` is the output of a model's outlier head, (B, H, W), passed through. Raises ValueError for an unknown name,
    for SML without `statistics`, for the last two without `outlier` and for "combined" without `tails`.
    """
    logits, maps = Logits.of(logits), {}
    for name in names:
        if name in ("outlier", "combined") and outlier is None:
            raise ValueError(f"{name!r} needs a model with an outlier head: train with outlier_epochs above 0")
        if name == "combined" and tails is None:
            raise ValueError("'combined' needs the tails of a model's calibration")
        if name in ("sml_raw", "sml") and statistics is None:
            raise ValueError(f"{name!r} needs class statistics: pass ClassStatistics.compute()'s result")
        if name in SCORES:
            maps[name] = SCORES[name](logits)
        elif name == "outlier":
            maps[name] = outlier
        elif name == "combined":
            maps[name] = combined(logits, outlier, tails)
        elif name == "sml_raw":
            maps[name] = standardized_max_logits(logits, statistics)
        elif name == "sml":
            maps[name] = sml(logits, statistics)
        else:
            raise ValueError(
                f"unknown score {name!r}: choose from {[*SCORES, 'sml_raw', 'sml', 'outlier', 'combined']}"
            )
    return maps

"""Accuracy of finding the odd image: overall, by class and class pair, by set size; and whether there is one at all."""

from collections.abc import Callable

import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from src import settings
from src.metrics import mean_interval
from src.sets.data import SIZE, Images, Sets, check, fixed_sets
from src.sets.model import distance_to_mean, leave_one_out_cosine

SIZES = (5, 8, 10, 12, 15, 20)
HARDEST = 20  # class pairs kept in a record
PROTOCOL = (
    "A set (of ten, if config says no other size): distinct images of a class drawn uniformly, but for one of another, "
    "at a uniform position; fixed by the config's seed. topK: share of sets whose odd image is among the K highest "
    "scores. Interval: 95 %, 1000 bootstrap resamples of sets. sizes: top1 against the number of images in a set. "
    "none_odd: AUROC of the largest softmax score of sets with an odd image against as many sets without."
)


@torch.inference_mode()
def scores_of(rule: Callable, features: torch.Tensor, indices: torch.Tensor, batch: int = 500) -> torch.Tensor:
    """Scores (B,N) on the CPU that a head or a rule gives the sets (B,N) of images with features (M,F)."""
    if isinstance(rule, nn.Module):
        rule = rule.to(settings.DEVICE).eval()
    features = features.to(settings.DEVICE)
    return torch.cat([rule(features[part.to(settings.DEVICE)]).float().cpu() for part in indices.split(batch)])


def ranks(scores: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Rank of the odd image in each set, int64 (B,), 0 = highest score; of equal scores it is the last."""
    own = scores.gather(1, position[:, None])
    return (~(scores < own)).sum(1) - 1  # so that a NaN is never right


def accuracy(scores: torch.Tensor, position: torch.Tensor) -> dict[str, float]:
    """``top1``, ``top2`` and ``top5`` of scores (B,N)."""
    rank = ranks(scores, position)
    return {f"top{k}": float((rank < k).float().mean()) for k in (1, 2, 5)}


def measure(head: nn.Module, features: torch.Tensor, images: Images, count: int, seed: int, size: int = SIZE) -> dict:
    """Everything a record holds of a head on one split, given its images' features (N,F)."""
    sets = fixed_sets(images, count, seed, size)
    composition = check(sets, images.labels)
    scores = scores_of(head, features, sets.indices)
    rank = ranks(scores, sets.position)
    rules = {"distance_to_mean": distance_to_mean, "leave_one_out_cosine": leave_one_out_cosine, "random": _random}
    return {
        **accuracy(scores, sets.position),
        "top1_interval": mean_interval(rank < 1),
        "top5_interval": mean_interval(rank < 5),
        "chance": 1 / size,
        "composition": composition,
        "classes": len(images.labels.unique()),
        "baselines": {name: accuracy(scores_of(rule, features, sets.indices), sets.position)
                      for name, rule in rules.items()},
        "per_class": per_class(rank, sets, images),
        "hardest_pairs": hardest_pairs(rank, sets, images),
        "sizes": by_size(head, features, images, count, seed),
        "none_odd": none_odd(head, features, images, scores, seed),
    }  # fmt: skip


def _random(features: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(features.device).manual_seed(0)
    return torch.rand(features.shape[:2], generator=generator, device=features.device)


def pairs_of(sets: Sets, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """(class of the nine, class of the odd one) of each set, int64 (B,) each; without an odd one twice the same."""
    members = images.labels[sets.indices]
    odd = members.gather(1, sets.position.clamp(min=0)[:, None])[:, 0]
    return members.mode(1).values, odd


def per_class(rank: torch.Tensor, sets: Sets, images: Images) -> dict[str, float]:
    """Class of the nine -> top1 of its sets, for the classes that some set drew."""
    anchor, _ = pairs_of(sets, images)
    return {images.classes[k]: float((rank[anchor == k] == 0).float().mean()) for k in anchor.unique().tolist()}


def hardest_pairs(rank: torch.Tensor, sets: Sets, images: Images) -> list[dict]:
    """The pairs of classes, either way round, with the most sets missed, most missed share first among equals."""
    size, pairs = len(images.classes), torch.stack(pairs_of(sets, images)).sort(0).values
    code = pairs[0] * size + pairs[1]
    drawn = torch.bincount(code, minlength=size**2)
    missed = torch.bincount(code[rank > 0], minlength=size**2)
    order = sorted(missed.nonzero()[:, 0].tolist(), key=lambda k: (-int(missed[k]), int(drawn[k]), k))
    return [{"classes": [images.classes[k // size], images.classes[k % size]], "missed": int(missed[k]),
             "sets": int(drawn[k])} for k in order[:HARDEST]]  # fmt: skip


def by_size(head: nn.Module, features: torch.Tensor, images: Images, count: int, seed: int) -> dict[str, float]:
    """top1 for sets of 5 to 20 images (those that the classes are large enough for, and the head was made for)."""
    fewest = int(images.labels.unique(return_counts=True)[1].min())
    found = {}
    for size in [head.size] if hasattr(head, "size") else [size for size in SIZES if size <= fewest]:
        sets = fixed_sets(images, count, seed + size, size)
        found[str(size)] = accuracy(scores_of(head, features, sets.indices), sets.position)["top1"]
    return found


def none_odd(head, features, images: Images, scores: torch.Tensor, seed: int) -> dict[str, float]:
    """AUROC of telling sets with an odd image, whose ``scores`` are given, from sets without."""
    without = scores_of(
        head, features, fixed_sets(images, *scores.shape[:1], seed + 1, scores.shape[1], odd=False).indices
    )
    largest = torch.cat([F.softmax(scores, 1).amax(1), F.softmax(without, 1).amax(1)])
    truth = torch.arange(len(largest)) < len(scores)
    return {"auroc": float(roc_auc_score(truth, largest))}


@torch.inference_mode()
def validate(model: nn.Module, sets: Sets, features_of: Callable) -> dict[str, float]:
    """``top1`` and ``top5`` of a model on fixed sets, ``features_of()`` giving its features of their images."""
    found = accuracy(scores_of(getattr(model, "head", model), features_of(), sets.indices), sets.position)
    return {"top1": found["top1"], "top5": found["top5"]}


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each parameter after a backward pass: all near zero = nothing reaches the layers."""
    return {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}


def feature_spread(features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Std ``within`` and ``between`` classes of features (N,F), root mean square over dimensions.

    Collapsed features (both near zero), or classes no further apart than their own images, leave nothing to learn from.
    """
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    within = torch.stack([features[labels == label].var(0, correction=0) for label in labels.unique()])
    return {"within": float(within.mean().sqrt()), "between": float(means.var(0, correction=0).mean().sqrt())}

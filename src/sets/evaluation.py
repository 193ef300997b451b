"""Accuracy of finding the odd image: overall, by class and class pair, by set size; and whether there is one at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from src import settings
from src.labelled import Labelled
from src.metrics import mean_interval
from src.sets import data, features
from src.sets.config import SET_SIZE
from src.sets.model import BASELINES
from src.sets.sampling import Sets, check, fixed_sets
from src.system import Trained

SIZES = (5, 8, 10, 12, 15, 20)
HARDEST = 20  # class pairs kept in a record
PROTOCOL = (
    "A set (of ten, if config says no other size): distinct images of a class drawn uniformly, but for one of another, "
    "at a uniform position; fixed by the config's seed. topK: share of sets whose odd image is among the K highest "
    "scores. Interval: 95 %, 1000 bootstrap resamples of sets. sizes: top1 against the number of images in a set. "
    "none_odd: AUROC of the largest softmax score of sets with an odd image against as many sets without."
)


# ------------------------------------------------------------------------------------------ of a data set
def evaluate(
    trained: Trained, root: Path | None = None, *, dataset: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """Metrics of a model on a split of its own data set, or of another folder of class folders (``dataset``).

    Splits are those of the trained config; where the config asked for names other ``classes``, all sets are of these.
    """
    config = trained.config
    dataset = dataset or config.dataset
    images = read_images(trained, root or data.default_root(dataset), dataset, split)
    image_features = features.extract(trained.model.encoder, images)
    return measure_head(trained.model.head, image_features, images, config.test_sets, config.seed, config.set_size)


def read_images(trained: Trained, root: Path, dataset: str, split: str) -> Labelled:
    """The images that a model is evaluated on."""
    images = data.read_split(trained.trained_config, root, dataset, split)
    classes = asked_classes(trained)
    return images.subset(images.of(data.choose_classes(images.classes, classes))) if classes else images


def asked_classes(trained: Trained) -> tuple[str, ...]:
    """The classes that an evaluation is restricted to; () for all that the split has."""
    classes = trained.config.classes
    return classes if classes != trained.trained_config.classes else ()


def evaluated(trained: Trained, root: Path, dataset: str, split: str) -> tuple[list[Path], dict[str, Any]]:
    """The files behind a split, of a carved one those that it is carved from; and the classes it is restricted to."""
    config = trained.trained_config
    has_own_files = split == "test" and len(config.per_class) == 2
    is_carved = data.is_divided(config, root, dataset) and not has_own_files
    return data.files(root, "train" if is_carved else split), {"classes": list(asked_classes(trained))}


# ---------------------------------------------------------------------------------------------- of a head
def measure_head(
    head: nn.Module, image_features: torch.Tensor, images: Labelled, count: int, seed: int, size: int = SET_SIZE
) -> dict[str, Any]:
    """Everything a record holds of a head on one split, given its images' features (N,F)."""
    sets = fixed_sets(images, count, seed, size)
    composition = check(sets, images.labels)
    scores = scores_of(head, image_features, sets.indices)
    rank = ranks(scores, sets.position)
    baselines = {name: scores_of(score, image_features, sets.indices) for name, score in BASELINES.items()}
    return {
        **accuracy(scores, sets.position),
        "top1_interval": mean_interval(rank < 1),
        "top5_interval": mean_interval(rank < 5),
        "chance": 1 / size,
        "composition": composition,
        "classes": len(images.labels.unique()),
        "baselines": {name: accuracy(values, sets.position) for name, values in baselines.items()},
        "per_class": per_class(rank, sets, images),
        "hardest_pairs": hardest_pairs(rank, sets, images),
        "sizes": by_size(head, image_features, images, count, seed),
        "none_odd": none_odd(head, image_features, images, scores, seed),
    }


@torch.inference_mode()
def scores_of(
    scorer: Callable[[torch.Tensor], torch.Tensor],
    image_features: torch.Tensor,
    indices: torch.Tensor,
    batch: int = 500,
) -> torch.Tensor:
    """Scores (B,N) on the CPU that a head or a baseline gives the sets (B,N) of images with features (M,F)."""
    if isinstance(scorer, nn.Module):
        scorer = scorer.to(settings.DEVICE).eval()
    image_features = image_features.to(settings.DEVICE)
    return torch.cat([scorer(image_features[part.to(settings.DEVICE)]).float().cpu() for part in indices.split(batch)])


def ranks(scores: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Rank of the odd image in each set, int64 (B,), 0 = highest score; of equal scores it is the last."""
    odd_score = scores.gather(1, position[:, None])
    return (~(scores < odd_score)).sum(1) - 1  # so that a NaN is never right


def accuracy(scores: torch.Tensor, position: torch.Tensor) -> dict[str, float]:
    """``top1``, ``top2`` and ``top5`` of scores (B,N)."""
    rank = ranks(scores, position)
    return {f"top{k}": float((rank < k).float().mean()) for k in (1, 2, 5)}


def validate(head: nn.Module, image_features: torch.Tensor, sets: Sets) -> dict[str, float]:
    """``top1`` and ``top5`` of a head on fixed sets."""
    metrics = accuracy(scores_of(head, image_features, sets.indices), sets.position)
    return {"top1": metrics["top1"], "top5": metrics["top5"]}


def pairs_of(sets: Sets, images: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
    """(class of the nine, class of the odd one) of each set, int64 (B,) each; without an odd one twice the same."""
    members = images.labels[sets.indices]
    odd = members.gather(1, sets.position.clamp(min=0)[:, None])[:, 0]
    return members.mode(1).values, odd


def per_class(rank: torch.Tensor, sets: Sets, images: Labelled) -> dict[str, float]:
    """Class of the nine -> top1 of its sets, for the classes that some set drew."""
    anchor, _ = pairs_of(sets, images)
    return {images.classes[k]: float((rank[anchor == k] == 0).float().mean()) for k in anchor.unique().tolist()}


def hardest_pairs(rank: torch.Tensor, sets: Sets, images: Labelled) -> list[dict[str, Any]]:
    """The pairs of classes, either way round, with the most sets missed, most missed share first among equals."""
    size, pairs = len(images.classes), torch.stack(pairs_of(sets, images)).sort(0).values
    code = pairs[0] * size + pairs[1]
    drawn = torch.bincount(code, minlength=size**2)
    missed = torch.bincount(code[rank > 0], minlength=size**2)
    order = sorted(missed.nonzero()[:, 0].tolist(), key=lambda k: (-int(missed[k]), int(drawn[k]), k))
    return [
        {
            "classes": [images.classes[k // size], images.classes[k % size]],
            "missed": int(missed[k]),
            "sets": int(drawn[k]),
        }
        for k in order[:HARDEST]
    ]


def by_size(head: nn.Module, image_features: torch.Tensor, images: Labelled, count: int, seed: int) -> dict[str, float]:
    """top1 for sets of 5 to 20 images (those that the classes are large enough for, and the head was made for)."""
    fewest = int(images.labels.unique(return_counts=True)[1].min())
    sizes = [head.size] if hasattr(head, "size") else [size for size in SIZES if size <= fewest]
    top1 = {}
    for size in sizes:
        sets = fixed_sets(images, count, seed + size, size)
        top1[str(size)] = accuracy(scores_of(head, image_features, sets.indices), sets.position)["top1"]
    return top1


def none_odd(
    head: nn.Module, image_features: torch.Tensor, images: Labelled, scores: torch.Tensor, seed: int
) -> dict[str, float]:
    """AUROC of telling sets with an odd image, whose ``scores`` (B,N) are given, from as many sets without."""
    from sklearn.metrics import roc_auc_score

    count, size = scores.shape
    sets_without = fixed_sets(images, count, seed + 1, size, odd=False)
    scores_without = scores_of(head, image_features, sets_without.indices)
    largest = torch.cat([F.softmax(scores, 1).amax(1), F.softmax(scores_without, 1).amax(1)])
    has_odd = torch.arange(len(largest)) < count
    return {"auroc": float(roc_auc_score(has_odd, largest))}


# -------------------------------------------------------------------------------------------- diagnostics
def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each parameter after a backward pass: all near zero = nothing reaches the layers."""
    return {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}


def feature_spread(image_features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Std ``within`` and ``between`` classes of features (N,F), root mean square over dimensions.

    Collapsed features (both near zero), or classes no further apart than their own images, leave nothing to learn from.
    """
    classes = [image_features[labels == label] for label in labels.unique()]
    means = torch.stack([members.mean(0) for members in classes])
    within = torch.stack([members.var(0, correction=0) for members in classes])
    return {"within": float(within.mean().sqrt()), "between": float(means.var(0, correction=0).mean().sqrt())}

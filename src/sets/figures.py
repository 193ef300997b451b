"""What the sets system draws: sets with the odd one framed, attention, the map of features, sizes, failures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from src import plots
from src.labelled import Labelled
from src.sets import features
from src.sets.evaluation import by_size, hardest_pairs, pairs_of, ranks, read_images, scores_of
from src.sets.sampling import Sets, fixed_sets
from src.system import Trained

ODD, CHOSEN, BOTH = plots.COLORS[1], plots.COLORS[0], plots.COLORS[2]
SHOWN = 14  # classes of the feature map
MARKERS = "os"  # of the feature map's classes, seven colours each


def data_flow() -> Figure:
    """The system as a diagram: what is trained, and how ten images become ten scores."""
    places = {
        "ten images": (0, 0.5),
        "encoder": (1.1, 0.5),
        "attention over the set": (2.6, 0),
        "class posteriors": (2.6, 1),
        "a score an image": (4.2, 0.5),
        "the odd one": (5.5, 0.5),
    }
    arrows = [
        ("ten images", "encoder"),
        ("encoder", "attention over the set"),
        ("encoder", "class posteriors"),
        ("attention over the set", "a score an image"),
        ("class posteriors", "a score an image"),
        ("a score an image", "the odd one"),
    ]
    return plots.flow_diagram(places, arrows, trained=("encoder", "attention over the set", "class posteriors"))


def draw(trained: Trained, root: Path, dataset: str) -> dict[str, Figure]:
    """Of validation images: sets, failures, hardest pairs, attention, feature map, accuracy by size; and the curves."""
    config, head = trained.config, trained.model.head
    images = read_images(trained, root, dataset, "val")
    image_features = features.extract(trained.model.encoder, images)
    sets = fixed_sets(images, config.val_sets, config.seed, config.set_size)
    scores = scores_of(head, image_features, sets.indices)
    examples = rows_of(sets, slice(0, 5))
    best_row = max(trained.history, key=lambda row: row["top1"])
    figures = {
        "sets": sets_grid(images, examples, scores[:5], names_of(images, examples)),
        "features": feature_map(image_features, images, examples),
        "sizes": sizes({"model": by_size(head, image_features, images, config.val_sets, config.seed)}),
        "curves": plots.learning_curves(trained.history, ("top1", "top5"), best_row["epoch"]),
    }
    if (ranks(scores, sets.position) > 0).any():
        figures["failures"] = failures(images, sets, scores)
        figures["pairs"] = pair_examples(images, sets, scores)
    if hasattr(head, "attention_maps"):
        figures["attention"] = attention(head, image_features, rows_of(sets, slice(0, 1)))
    return figures


# -------------------------------------------------------------------------------------------- rows of sets
def rows_of(sets: Sets, chosen: torch.Tensor | slice) -> Sets:
    """Some of the sets, by index, mask or slice."""
    return Sets(sets.indices[chosen], sets.position[chosen])


def names_of(images: Labelled, sets: Sets) -> list[str]:
    """``class of the nine / class of the odd one`` for each set."""
    classes = [_plain(name) for name in images.classes]
    return [f"{classes[anchor]}\n{classes[odd]}" for anchor, odd in zip(*pairs_of(sets, images), strict=True)]


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _show(axis: Axes, pixels: torch.Tensor, color: str | None = None) -> None:
    axis.imshow(pixels.permute(1, 2, 0).numpy())
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=color is not None, color=color, linewidth=3)


def sets_grid(images: Labelled, sets: Sets, scores: torch.Tensor, names: Sequence[str] = ()) -> Figure:
    """A set a row, the softmax of its scores (B,N) under the images, in per cent.

    Framed green: odd and found; orange: odd and missed; blue: chosen in its place.
    """
    rows, columns = sets.indices.shape
    size = (plots.WIDTH, (plots.WIDTH / columns + 0.22) * rows)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=size)
    shares, chosen = scores.softmax(1), scores.argmax(1)
    for row in range(rows):
        for column in range(columns):
            axis, is_odd, is_chosen = axes[row, column], column == sets.position[row], column == chosen[row]
            color = {(True, True): BOTH, (True, False): ODD, (False, True): CHOSEN}.get((bool(is_odd), bool(is_chosen)))
            _show(axis, images.items[sets.indices[row, column]], color)
            axis.set_xlabel(f"{100 * shares[row, column]:.0f} %", fontsize=8)
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name, fontsize=7)
    return figure


def failures(images: Labelled, sets: Sets, scores: torch.Tensor, count: int = 5) -> Figure:
    """The missed sets in which the odd one got the smallest share of the scores."""
    odd_share = scores.softmax(1).gather(1, sets.position[:, None])[:, 0]
    missed = (ranks(scores, sets.position) > 0).nonzero()[:, 0]
    worst = missed[odd_share[missed].argsort()[:count]]
    return sets_grid(images, rows_of(sets, worst), scores[worst], names_of(images, rows_of(sets, worst)))


def pair_examples(images: Labelled, sets: Sets, scores: torch.Tensor, count: int = 4) -> Figure:
    """One missed set of each of the hardest pairs of classes."""
    rank = ranks(scores, sets.position)
    anchor, odd = pairs_of(sets, images)
    examples = []
    for pair in hardest_pairs(rank, sets, images)[:count]:
        a, b = (images.classes.index(name) for name in pair["classes"])
        is_pair = ((anchor == a) & (odd == b)) | ((anchor == b) & (odd == a))
        examples.append(int((is_pair & (rank > 0)).nonzero()[0, 0]))
    chosen = rows_of(sets, torch.tensor(examples))
    return sets_grid(images, chosen, scores[examples], names_of(images, chosen))


def classes_grid(images: Labelled, each: int = 2, columns: int = 16) -> Figure:
    """The first images of each class, ``each`` side by side, named above."""
    labels = images.labels.unique().tolist()
    per_row = columns // each
    rows = -(-len(labels) // per_row)
    figure, axes = plt.subplots(rows, per_row, figsize=(plots.WIDTH, 0.82 * rows), squeeze=False)
    for axis in axes.flat[len(labels) :]:
        axis.set_visible(False)
    for axis, label in zip(axes.flat, labels, strict=False):
        first = images.items[(images.labels == label).nonzero()[:each, 0]]
        _show(axis, torch.cat(list(first), 2))
        axis.set_title(_plain(images.classes[label]), fontsize=7, pad=2)
    return figure


# -------------------------------------------------------------------------------- attention and features
def attention(head: nn.Module, image_features: torch.Tensor, sets: Sets) -> Figure:
    """Attention within the first set: a matrix for each layer, the odd image's row and column marked."""
    device = next(head.parameters()).device
    with torch.inference_mode():
        maps = head.attention_maps(image_features[sets.indices].to(device))[:, 0].cpu()
    size = maps.shape[-1]
    ticks = ["odd" if place == int(sets.position[0]) else str(place) for place in range(size)]
    figure, axes = plt.subplots(1, len(maps), figsize=(plots.WIDTH, plots.WIDTH / len(maps) + 0.5), squeeze=False)
    for layer, (axis, values) in enumerate(zip(axes[0], maps, strict=True), start=1):
        axis.imshow(values.numpy(), cmap=plots.SCORE_MAP, vmin=0, vmax=float(maps.max()))
        axis.grid(False)
        axis.set_xticks(range(size), ticks, fontsize=7, rotation=90)
        axis.set_yticks(range(size), ticks, fontsize=7)
        axis.set(title=f"layer {layer}", xlabel="attention to", ylabel="attention of" if layer == 1 else "")
    return figure


def feature_map(image_features: torch.Tensor, images: Labelled, sets: Sets) -> Figure:
    """The features' first two principal components: left, by class; right, the first set with its odd image."""
    from sklearn.decomposition import PCA

    points = PCA(2, random_state=0).fit_transform(image_features.numpy())
    figure, (left, right) = plt.subplots(1, 2, figsize=(plots.WIDTH, 4), sharex=True, sharey=True)
    labels = images.labels.unique()
    shown = labels[np.unique(np.linspace(0, len(labels) - 1, SHOWN).round().astype(int))]
    for index, label in enumerate(shown.tolist()):
        style = {"color": plots.COLORS[index % 7], "marker": MARKERS[index // 7]}
        left.scatter(*points[(images.labels == label).numpy()].T, s=8, label=_plain(images.classes[label]), **style)
    left.legend(fontsize=7, ncols=2, markerscale=1.5)
    left.set(title="images by class", xlabel="first component", ylabel="second component")
    members = points[sets.indices[0].numpy()]
    is_odd = np.arange(len(members)) == int(sets.position[0])
    right.scatter(*points.T, s=3, color="lightgrey")
    right.scatter(*members[~is_odd].T, s=40, color=CHOSEN, label="nine of one class")
    right.scatter(*members[is_odd].T, s=90, color=ODD, marker="*", label="the odd one")
    right.legend(fontsize=8)
    right.set(title="one set among all images", xlabel="first component")
    return figure


# ------------------------------------------------------------------------------------------------- curves
def gradient_bars(norms: Mapping[str, float]) -> Figure:
    """Norms of gradients (``evaluation.gradient_norms``) from input to output, on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 2.6))
    weights = {name: norm for name, norm in norms.items() if name.endswith("weight")}
    axis.bar(range(len(weights)), list(weights.values()))
    parts = [name.split(".")[0] for name in weights]
    starts = [parts.index(part) for part in dict.fromkeys(parts)]
    axis.set_xticks(starts, [parts[index] for index in starts], ha="left")
    axis.set(yscale="log", ylabel="gradient norm", xlabel="layers, from input to output")
    return figure


def sizes(curves: Mapping[str, Mapping[str, float]]) -> Figure:
    """top1 against the number of images in a set, with chance."""
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3))
    for name, curve in curves.items():
        axis.plot([int(size) for size in curve], list(curve.values()), marker="o", label=name)
    counts = [int(size) for size in next(iter(curves.values()))]
    axis.plot(counts, [1 / count for count in counts], color="grey", linestyle=":", label="chance")
    axis.set(xlabel="images in a set", ylabel="top-1", ylim=(0, 1))
    axis.legend()
    return figure

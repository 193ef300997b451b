"""What the sets system draws: sets with the odd one framed, attention, the map of features, sizes, failures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from src import plots
from src.sets import features
from src.sets.data import Images, Sets, fixed_sets
from src.sets.evaluation import by_size, hardest_pairs, pairs_of, ranks, scores_of

TRUE, CHOSEN, BOTH = plots.COLORS[1], plots.COLORS[0], plots.COLORS[2]
SHOWN = 14  # classes of the feature map


def _picture(axis, pixels: torch.Tensor, color: str | None = None) -> None:
    axis.imshow(pixels.permute(1, 2, 0).numpy())
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set(visible=color is not None, color=color, linewidth=3)


def sets_grid(images: Images, sets: Sets, scores: torch.Tensor, names: Sequence[str] = ()) -> Figure:
    """A set a row, the softmax of its scores (B,N) under the images, in per cent.

    Framed green: odd and found; orange: odd and missed; blue: taken for odd instead.
    """
    rows, columns = sets.indices.shape
    figure, axes = plt.subplots(rows, columns, squeeze=False,
                                figsize=(plots.WIDTH, (plots.WIDTH / columns + 0.22) * rows))  # fmt: skip
    shares = scores.softmax(1)
    for axis_row, indices, position, own in zip(axes, sets.indices, sets.position, shares, strict=True):
        chosen = int(own.argmax())
        for column, axis in enumerate(axis_row):
            odd, taken = column == int(position), column == chosen
            _picture(axis, images.pixels[indices[column]],
                     BOTH if odd and taken else TRUE if odd else CHOSEN if taken else None)  # fmt: skip
            axis.set_xlabel(f"{100 * own[column]:.0f} %", fontsize=8)
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name, fontsize=7)
    return figure


def classes_grid(images: Images, each: int = 2, columns: int = 16) -> Figure:
    """The first images of each class, ``each`` side by side, named above."""
    present = images.labels.unique().tolist()
    per_row = columns // each
    rows = -(-len(present) // per_row)
    figure, axes = plt.subplots(rows, per_row, figsize=(plots.WIDTH, 0.82 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, label in zip(axes.flat, present, strict=False):
        axis.set_visible(True)
        own = images.pixels[(images.labels == label).nonzero()[:each, 0]]
        _picture(axis, torch.cat(list(own), 2))
        axis.set_title(images.classes[label].replace("_", " "), fontsize=7, pad=2)
    return figure


def names_of(images: Images, sets: Sets) -> list[str]:
    """``class of the nine / class of the odd one`` for each set."""
    classes = [name.replace("_", " ") for name in images.classes]
    return [f"{classes[a]}\n{classes[b]}" for a, b in zip(*pairs_of(sets, images), strict=True)]


def rows_of(sets: Sets, chosen: torch.Tensor) -> Sets:
    """Some of the sets, by index or mask."""
    return Sets(sets.indices[chosen], sets.position[chosen])


def failures(images: Images, sets: Sets, scores: torch.Tensor, count: int = 5) -> Figure:
    """The missed sets in which the odd one got the smallest share of the scores."""
    share = scores.softmax(1).gather(1, sets.position[:, None])[:, 0]
    missed = (ranks(scores, sets.position) > 0).nonzero()[:, 0]
    worst = missed[share[missed].argsort()[:count]]
    return sets_grid(images, rows_of(sets, worst), scores[worst], names_of(images, rows_of(sets, worst)))


def pair_examples(images: Images, sets: Sets, scores: torch.Tensor, count: int = 4) -> Figure:
    """One missed set of each of the hardest pairs of classes."""
    rank = ranks(scores, sets.position)
    anchor, odd = pairs_of(sets, images)
    chosen = []
    for pair in hardest_pairs(rank, sets, images)[:count]:
        a, b = (images.classes.index(name) for name in pair["classes"])
        of_pair = ((anchor == a) & (odd == b)) | ((anchor == b) & (odd == a))
        chosen.append(int((of_pair & (rank > 0)).nonzero()[0, 0]))
    picked = rows_of(sets, torch.tensor(chosen))
    return sets_grid(images, picked, scores[chosen], names_of(images, picked))


def attention(head, found: torch.Tensor, sets: Sets) -> Figure:
    """Who looks at whom in one set: a matrix for each layer, the odd image's row and column marked."""
    with torch.inference_mode():
        maps = head.attention_maps(found[sets.indices].to(next(head.parameters()).device))[:, 0].cpu()
    size = maps.shape[-1]
    figure, axes = plt.subplots(1, len(maps), figsize=(plots.WIDTH, plots.WIDTH / len(maps) + 0.5), squeeze=False)
    place = int(sets.position[0])
    for layer, (axis, values) in enumerate(zip(axes[0], maps, strict=True), start=1):
        axis.imshow(values.numpy(), cmap=plots.SCORE_MAP, vmin=0, vmax=float(maps.max()))
        axis.grid(False)
        ticks = ["odd" if i == place else str(i) for i in range(size)]
        axis.set_xticks(range(size), ticks, fontsize=7, rotation=90)
        axis.set_yticks(range(size), ticks, fontsize=7)
        axis.set(title=f"layer {layer}", xlabel="is looked at", ylabel="looks" if layer == 1 else "")
    return figure


def feature_map(found: torch.Tensor, images: Images, sets: Sets) -> Figure:
    """The features' first two principal components: left, by class; right, one set with its odd image."""
    points = PCA(2, random_state=0).fit_transform(found.numpy())
    figure, (left, right) = plt.subplots(1, 2, figsize=(plots.WIDTH, 4), sharex=True, sharey=True)
    present = images.labels.unique()
    shown = present[np.unique(np.linspace(0, len(present) - 1, SHOWN).round().astype(int))]
    for rank, label in enumerate(shown.tolist()):
        own = (images.labels == label).numpy()
        left.scatter(*points[own].T, s=8, color=plots.COLORS[rank % 7], marker="os"[rank // 7],
                     label=images.classes[label].replace("_", " "))  # fmt: skip
    left.legend(fontsize=7, ncols=2, markerscale=1.5)
    right.scatter(*points.T, s=3, color="lightgrey")
    members = points[sets.indices[0].numpy()]
    odd = np.arange(len(members)) == int(sets.position[0])
    right.scatter(*members[~odd].T, s=40, color=CHOSEN, label="nine of one class")
    right.scatter(*members[odd].T, s=90, color=TRUE, marker="*", label="the odd one")
    right.legend(fontsize=8)
    left.set(title="images by class", xlabel="first component", ylabel="second component")
    right.set(title="one set among all images", xlabel="first component")
    return figure


def gradient_bars(norms: dict[str, float]) -> Figure:
    """Norms of gradients (``evaluate.gradient_norms``) from input to output, on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 2.6))
    weights = {name: norm for name, norm in norms.items() if name.endswith("weight")}
    axis.bar(range(len(weights)), list(weights.values()))
    parts = [name.split(".")[0] for name in weights]
    starts = [index for index, part in enumerate(parts) if index == 0 or part != parts[index - 1]]
    axis.set_xticks(starts, [parts[index] for index in starts], ha="left")
    axis.set(yscale="log", ylabel="gradient norm", xlabel="layers, from input to output")
    return figure


def sizes(curves: dict[str, dict[str, float]]) -> Figure:
    """top1 against the number of images in a set, with chance."""
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3))
    for name, curve in curves.items():
        axis.plot([int(size) for size in curve], list(curve.values()), marker="o", label=name)
    known = [int(size) for size in next(iter(curves.values()))]
    axis.plot(known, [1 / size for size in known], color="grey", linestyle=":", label="chance")
    axis.set(xlabel="images in a set", ylabel="top-1", ylim=(0, 1))
    axis.legend()
    return figure


def write_set(images: Images, scores: torch.Tensor, path: Path) -> Path:
    """The images in a row, the one with the highest of ``scores`` (N,) framed."""
    sets = Sets(torch.arange(len(images))[None], scores.argmax()[None])
    figure = sets_grid(images, sets, scores[None])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path


def draw_all(trained, name: str, images: Images) -> list[Path]:
    """Sets, failures, hardest pairs, attention, feature map and accuracy by size of a trained model."""
    config, head = trained.config, trained.model.head
    found = features.extract(trained.model.encoder, images)
    sets = fixed_sets(images, config.val_sets, config.seed, config.set_size)
    scores = scores_of(head, found, sets.indices)
    first, best = rows_of(sets, torch.arange(5)), max(trained.history, key=lambda row: row["top1"])
    drawn = {
        "sets": sets_grid(images, first, scores[:5], names_of(images, first)),
        "features": feature_map(found, images, first),
        "sizes": sizes({"model": by_size(head, found, images, config.val_sets, config.seed)}),
        "curves": plots.learning_curves(trained.history, ("top1", "top5"), best["epoch"]),
    }
    if (ranks(scores, sets.position) > 0).any():
        drawn |= {"failures": failures(images, sets, scores), "pairs": pair_examples(images, sets, scores)}
    if hasattr(head, "attention_maps"):
        drawn["attention"] = attention(head, found, rows_of(sets, torch.arange(1)))
    return [plots.save(figure, f"sets/{name}_{kind}") for kind, figure in drawn.items()]

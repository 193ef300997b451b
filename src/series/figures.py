"""What the series system draws: walls of plots, confusion, calibration, mistakes, and where the network looks."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from src import plots
from src.series.data import Labelled
from src.series.model import activation_maps

LINE, EVENT = plots.COLORS[0], plots.COLORS[1]


def short(name: str) -> str:
    return name.replace("_", " ").replace("deterministic", "determ.").replace("anomaly", "anom.")


def show(axis: Axes, item: torch.Tensor) -> None:
    """A plot as the network sees it: the trace of its line (2,W), or a picture uint8 (3,H,W)."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    if item.ndim == 3:
        axis.imshow(item.permute(1, 2, 0).numpy(), aspect="auto", extent=(0, 1, 0, 1))
        return
    top, bottom = item.float().numpy()
    places = (np.arange(len(top)) + 0.5) / len(top)
    axis.fill_between(places, bottom, top, color=LINE, linewidth=0.3)
    axis.set(xlim=(0, 1), ylim=(-0.05, 1.05))


def wall(found: Labelled, each: int = 6) -> Figure:
    """The first plots of every class, a class a row."""
    present = found.labels.unique().tolist()
    figure, axes = plt.subplots(len(present), each, figsize=(plots.WIDTH, 0.8 * len(present)), squeeze=False)
    for row, label in zip(axes, present, strict=True):
        own = (found.labels == label).nonzero()[:, 0].tolist()
        for axis, index in zip(row, own, strict=False):
            show(axis, found.items[index])
        for axis in row[len(own) :]:
            axis.set_visible(False)
        row[0].set_ylabel(short(found.classes[label]).replace(" ", "\n"), fontsize=8)
    return figure


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Counts (true class down, named class across), coloured by the share of the true class."""
    counts = np.array(matrix)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure, axis = plt.subplots(figsize=(0.72 * plots.WIDTH, 0.58 * plots.WIDTH))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8,
                  color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    names = [short(name) for name in classes]
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="named", ylabel="true")
    axis.grid(False)
    return figure


def reliability(bins: dict[str, dict[str, list]]) -> Figure:
    """Accuracy against confidence for each entry's ``calibration`` bins; the diagonal is honest."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(plots.WIDTH, 3))
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="honest")
    for name, found in bins.items():
        left.plot(found["confidence"], found["accuracy"], marker="o", label=name)
        right.plot(found["confidence"], found["count"], marker="o", label=name)
    left.set(xlabel="largest probability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="largest probability", ylabel="plots", xlim=(0, 1))
    left.legend()
    return figure


def mistakes(found: Labelled, probabilities: torch.Tensor, count: int = 12) -> Figure:
    """The wrongly named plots with the smallest probability of their true class, worst first."""
    own = probabilities.gather(1, found.labels[:, None])[:, 0]
    wrong = (probabilities.argmax(1) != found.labels).nonzero()[:, 0]
    worst = wrong[own[wrong].argsort()[:count]].tolist()
    figure, axes = plt.subplots(-(-len(worst) // 4) or 1, 4, figsize=(plots.WIDTH, 1.6 * (-(-len(worst) // 4) or 1)),
                                squeeze=False)  # fmt: skip
    for axis in axes.flat[len(worst) :]:
        axis.set_visible(False)
    for axis, index in zip(axes.flat, worst, strict=False):
        show(axis, found.items[index])
        named = int(probabilities[index].argmax())
        axis.set_title(f"{short(found.classes[int(found.labels[index])])}, named\n{short(found.classes[named])} "
                       f"({100 * float(probabilities[index, named]):.0f} %)", fontsize=8)  # fmt: skip
    return figure


def looks(net: nn.Module, items: torch.Tensor, titles: Sequence[str], events: Sequence = ()) -> Figure:
    """Each plot over its activation map; recorded events, as shares (start, stop) of the time, marked."""
    maps = activation_maps(net, items)
    rows = -(-len(items) // 3)
    figure, axes = plt.subplots(2 * rows, 3, figsize=(plots.WIDTH, 1.9 * rows), squeeze=False, sharex=True,
                                gridspec_kw={"height_ratios": [4, 1] * rows})  # fmt: skip
    for axis in axes.flat:
        axis.set_visible(False)
    for index, (item, strip) in enumerate(zip(items, maps, strict=True)):
        above, below = axes[2 * (index // 3) : 2 * (index // 3) + 2, index % 3]
        above.set_visible(True)
        below.set_visible(True)
        show(above, item)
        above.set_title(titles[index], fontsize=8)
        for start, stop in events[index] if len(events) else ():
            above.axvspan(start, max(stop, start + 0.004), color=EVENT, alpha=0.3, linewidth=0)
        below.imshow(strip[None].numpy(), aspect="auto", extent=(0, 1, 0, 1), cmap=plots.SCORE_MAP)
        below.set(xticks=[], yticks=[])
        below.grid(False)
    return figure


def fold_curves(history: dict[str, list[dict]]) -> Figure:
    """Training loss and held-out accuracy over the epochs of each run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(plots.WIDTH, 2.8))
    for name, rows in history.items():
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["loss"] for row in rows], label=name)
        if "accuracy" in rows[0]:
            right.plot(epochs, [row["accuracy"] for row in rows], label=name)
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="accuracy on plots held out")
    left.legend()
    return figure


def accuracy_by_length(curves: dict[str, dict[str, float]]) -> Figure:
    """Accuracy against the number of samples of a series, for each entry."""
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3))
    bands = list(next(iter(curves.values())))
    for rank, (name, curve) in enumerate(curves.items()):
        at = np.arange(len(bands)) + (rank - (len(curves) - 1) / 2) * 0.8 / len(curves)
        axis.bar(at, [curve[band] for band in bands], 0.75 / len(curves), label=name)
    axis.set_xticks(range(len(bands)), bands)
    axis.set(xlabel="samples of the series", ylabel="accuracy", ylim=(0, 1.15))
    axis.legend(loc="upper left", ncols=len(curves))
    return figure


def write_predictions(trained, files: Sequence[Path], items: torch.Tensor, found: torch.Tensor, out: Path) -> None:
    """``<name>_named.png`` below ``out`` for each file: its plot, where the network looks, its probabilities."""
    out.mkdir(parents=True, exist_ok=True)
    names = [short(name) for name in trained.classes]
    for file, item, row in zip(files, items, found, strict=True):
        strip = activation_maps(trained.model.members[0], item[None])
        figure, axes = plt.subplot_mosaic([["plot", "bars"], ["look", "bars"]], figsize=(plots.WIDTH, 3),
                                          gridspec_kw={"height_ratios": [5, 1], "width_ratios": [2, 1]})  # fmt: skip
        show(axes["plot"], item)
        axes["plot"].set_title(f"{file.name}: {names[int(row.argmax())]}")
        axes["look"].imshow(strip.numpy(), aspect="auto", cmap=plots.SCORE_MAP)
        axes["look"].set(xticks=[], yticks=[], xlabel="where the network looks")
        axes["look"].grid(False)
        axes["bars"].barh(names, row.numpy())
        axes["bars"].invert_yaxis()
        axes["bars"].set(xlim=(0, 1), xlabel="probability")
        figure.savefig(out / f"{file.stem}_named.png")
        plt.close(figure)


def draw_all(trained, name: str, found: Labelled, metrics: dict, probabilities: torch.Tensor) -> list[Path]:
    """Wall, confusion, reliability, mistakes, activation and curves of a trained model on plots that it did not see."""
    present = found.labels.unique().tolist()
    sure = [int((probabilities[:, k] * (found.labels == k)).argmax()) for k in present]
    drawn = {
        "wall": wall(found),
        "confusion": confusion(metrics["confusion"], found.classes),
        "reliability": reliability({"probabilities": metrics["reliability"]}),
        "looks": looks(trained.model.members[0], found.items[sure], [short(found.classes[k]) for k in present]),
        "curves": fold_curves(trained.history),
    }
    if (probabilities.argmax(1) != found.labels).any():
        drawn["mistakes"] = mistakes(found, probabilities)
    return [plots.save(figure, f"series/{name}_{kind}") for kind, figure in drawn.items()]

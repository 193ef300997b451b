"""What the series system draws: walls of plots, confusion, calibration, mistakes, and where attention goes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from src.images import read_image
from src.labelled import Labelled
from src.plots import COLORS, SCORE_MAP, WIDTH, flow_diagram
from src.series import envelope, evaluation
from src.series.data import class_names
from src.series.model import activation_maps
from src.synthetic import series_plots, series_raster
from src.system import Trained

LINE, EVENT = COLORS[0], COLORS[1]


def data_flow() -> Figure:
    """The system as a diagram: what is trained, and how a plot becomes a class."""
    places = {
        "plot": (0, 0),
        "line envelope": (1.1, 0),
        "ensemble of networks": (2.6, 0),
        "temperature scaling": (4.2, 0),
        "nine probabilities": (5.7, 0),
    }
    arrows = list(pairwise(places))
    return flow_diagram(places, arrows, trained=("ensemble of networks", "temperature scaling"))


def draw(trained: Trained, root: Path, dataset: str) -> dict[str, Figure]:
    """name -> figure of a trained model on the split val, whose plots it was not trained on."""
    plots, probabilities = evaluation.predict_split(trained, root, dataset, "val")
    metrics = evaluation.measure(probabilities, plots.labels, plots.classes)
    present = plots.labels.unique().tolist()
    surest = [int((probabilities[:, k] * (plots.labels == k)).argmax()) for k in present]
    titles = [short(plots.classes[k]) for k in present]
    figures = {
        "wall": wall(plots),
        "confusion": confusion(metrics["confusion"], plots.classes),
        "reliability": reliability({"probabilities": metrics["reliability"]}),
        "activations": activations(trained.model.members[0], plots.items[surest], titles),
        "curves": fold_curves(trained.history),
    }
    if (probabilities.argmax(1) != plots.labels).any():
        figures["mistakes"] = mistakes(plots, probabilities)
    return figures


def write_predictions(
    trained: Trained, files: Sequence[Path], items: torch.Tensor, probabilities: torch.Tensor, out: Path
) -> None:
    """``<name>_predicted.png`` below ``out`` for each file: its plot, its activation map, its probabilities."""
    out.mkdir(parents=True, exist_ok=True)
    names = [short(name) for name in class_names(trained.config)]
    maps = activation_maps(trained.model.members[0], items)
    bar = tqdm(files, "drawing", leave=False, disable=len(files) < 2 or None)
    layout = {"gridspec_kw": {"height_ratios": [5, 1], "width_ratios": [2, 1]}, "figsize": (WIDTH, 3)}
    for file, item, activation_map, row in zip(bar, items, maps, probabilities, strict=True):
        figure, axes = plt.subplot_mosaic([["plot", "bars"], ["map", "bars"]], **layout)
        show(axes["plot"], item)
        axes["plot"].set_title(f"{file.name}: {names[int(row.argmax())]}")
        show_map(axes["map"], activation_map)
        axes["map"].set(xlabel="activation map")
        axes["bars"].barh(names, row.numpy())
        axes["bars"].invert_yaxis()
        axes["bars"].set(xlim=(0, 1), xlabel="probability")
        figure.savefig(out / f"{file.stem}_predicted.png")
        plt.close(figure)


# ----------------------------------------------------------------------------------------------- parts
def short(name: str) -> str:
    """A class name, short enough for a title."""
    return name.replace("_", " ").replace("deterministic", "determ.").replace("anomaly", "anom.")


def show(axis: Axes, item: torch.Tensor) -> None:
    """A plot as the network sees it: the envelope of its line (2,W), or a picture uint8 (3,H,W)."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    if item.ndim == 3:
        picture = item.permute(1, 2, 0).numpy()
        axis.imshow(picture, aspect="auto", extent=(0, 1, 0, 1), interpolation="antialiased")
        return
    top, bottom = item.float().numpy()
    times = (np.arange(len(top)) + 0.5) / len(top)
    axis.fill_between(times, bottom, top, color=LINE, linewidth=0.3)
    axis.set(xlim=(0, 1), ylim=(-0.05, 1.05))


def show_map(axis: Axes, activation_map: torch.Tensor) -> None:
    """An activation map (w,) as a strip below its plot."""
    axis.imshow(activation_map[None].numpy(), aspect="auto", extent=(0, 1, 0, 1), cmap=SCORE_MAP)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


# ----------------------------------------------------------------------------------------------- plots
def wall(plots: Labelled, each: int = 6) -> Figure:
    """The first plots of every class, a class a row."""
    present = plots.labels.unique().tolist()
    figure, axes = plt.subplots(len(present), each, figsize=(WIDTH, 0.8 * len(present)), squeeze=False)
    for row, label in zip(axes, present, strict=True):
        items = plots.items[plots.labels == label]
        for axis, item in zip(row, items, strict=False):
            show(axis, item)
        for axis in row[len(items) :]:
            axis.set_visible(False)
        row[0].set_ylabel(short(plots.classes[label]).replace(" ", "\n"), fontsize=8)
    return figure


def mistakes(plots: Labelled, probabilities: torch.Tensor, count: int = 12) -> Figure:
    """The misclassified plots with the smallest probability of their true class, worst first."""
    of_truth = probabilities.gather(1, plots.labels[:, None])[:, 0]
    wrong = torch.where(probabilities.argmax(1) != plots.labels)[0]
    worst = wrong[of_truth[wrong].argsort()[:count]].tolist()
    rows = -(-len(worst) // 4) or 1
    figure, axes = plt.subplots(rows, 4, figsize=(WIDTH, 1.6 * rows), squeeze=False)
    for axis in axes.flat[len(worst) :]:
        axis.set_visible(False)
    for axis, index in zip(axes.flat, worst, strict=False):
        show(axis, plots.items[index])
        probability, predicted = probabilities[index].max(0)
        truth, prediction = (short(plots.classes[int(k)]) for k in (plots.labels[index], predicted))
        axis.set_title(f"{truth}, predicted\n{prediction} ({100 * float(probability):.0f} %)", fontsize=8)
    return figure


def activations(net: nn.Module, items: torch.Tensor, titles: Sequence[str], events: Sequence = ()) -> Figure:
    """Each plot over its activation map; recorded events, as shares (start, stop) of the time, marked."""
    rows = -(-len(items) // 3)
    figure, axes = plt.subplots(
        2 * rows,
        3,
        figsize=(WIDTH, 1.9 * rows),
        squeeze=False,
        sharex=True,
        gridspec_kw={"height_ratios": [4, 1] * rows},
    )
    pairs = [(axes[row, column], axes[row + 1, column]) for row in range(0, 2 * rows, 2) for column in range(3)]
    for above, below in pairs[len(items) :]:
        above.set_visible(False)
        below.set_visible(False)
    for index, activation_map in enumerate(activation_maps(net, items)):
        above, below = pairs[index]
        show(above, items[index])
        above.set_title(titles[index], fontsize=8)
        for start, stop in events[index] if len(events) else ():
            above.axvspan(start, max(stop, start + 0.004), color=EVENT, alpha=0.3, linewidth=0)
        show_map(below, activation_map)
    return figure


def events_by_strength(net: nn.Module, plots: Labelled, known: Sequence[dict], names: Sequence[str]) -> Figure:
    """Of each class named, the plots with the strongest and the weakest event, over their activation maps.

    ``known``: what the generator says of each plot, with the event's signal-to-noise ratio ``snr`` in dB.
    """
    chosen = []
    for label in map(plots.classes.index, names):
        of_class = torch.where(plots.labels == label)[0].tolist()
        by_strength = sorted(of_class, key=lambda k: known[k]["snr"])
        chosen += [by_strength[-1], by_strength[0]]
    titles = [f"{short(plots.classes[int(plots.labels[k])])}, {known[k]['snr']:.0f} dB" for k in chosen]
    events = [[np.divide(span, known[k]["length"]) for span in known[k]["events"]] for k in chosen]
    return activations(net, plots.items[chosen], titles, events)


def matplotlib_plot(values: np.ndarray) -> np.ndarray:
    """The plot of a series (n,) as matplotlib draws it: uint8 (H,W,3)."""
    with TemporaryDirectory() as folder:
        series_plots.draw(values, Path(folder) / "plot.png")
        return read_image(Path(folder) / "plot.png")


def renderings(values: np.ndarray) -> Figure:
    """A series (n,) drawn by matplotlib and by the rasteriser, and the envelope of its line."""
    raster = series_raster.picture(values, (series_raster.HEIGHT, series_raster.WIDTH))
    items = {
        "matplotlib": matplotlib_plot(values).transpose(2, 0, 1),
        "rasteriser": raster,
        "line envelope": envelope.of_series(values),
    }
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.4))
    for axis, (title, item) in zip(axes, items.items(), strict=True):
        show(axis, torch.from_numpy(np.ascontiguousarray(item)))
        axis.set_title(title)
    return figure


# --------------------------------------------------------------------------------------------- metrics
def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Counts (true class down, predicted class across), coloured by the share of the true class."""
    counts = np.array(matrix)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure, axis = plt.subplots(figsize=(0.72 * WIDTH, 0.58 * WIDTH))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=color)
    names = [short(name) for name in classes]
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    axis.grid(False)
    return figure


def reliability(bins: dict[str, dict[str, list]]) -> Figure:
    """Accuracy against confidence for each entry's ``calibration`` bins; on the diagonal the two agree."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3))
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    for name, of_bins in bins.items():
        left.plot(of_bins["confidence"], of_bins["accuracy"], marker="o", label=name)
        right.plot(of_bins["confidence"], of_bins["count"], marker="o", label=name)
    left.set(xlabel="largest probability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="largest probability", ylabel="plots", xlim=(0, 1), yscale="log")
    left.legend()
    return figure


def fold_curves(history: dict[str, list[dict]]) -> Figure:
    """Training loss and held-out accuracy over the epochs of each run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8))
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
    figure, axis = plt.subplots(figsize=(WIDTH, 3))
    bands = list(next(iter(curves.values())))
    for rank, (name, curve) in enumerate(curves.items()):
        places = np.arange(len(bands)) + (rank - (len(curves) - 1) / 2) * 0.8 / len(curves)
        axis.bar(places, [curve[band] for band in bands], 0.75 / len(curves), label=name)
    axis.set_xticks(range(len(bands)), bands)
    axis.set(xlabel="samples of the series", ylabel="accuracy", ylim=(0, 1.15))
    axis.legend(loc="upper left", ncols=len(curves))
    return figure

"""The figure style, and the figures that do not depend on a system.

Colours are Okabe and Ito's colour-blind-safe cycle; scores use a perceptually uniform map.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from scipy import ndimage

from src import files, settings

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
SCORE_MAP = "inferno"
OUTLINE = (60, 250, 240)  # a colour that neither streets nor parts have
# What a threshold makes of a pixel, told apart by lightness too.
OUTCOMES = {"found": (0, 158, 115), "missed": (250, 235, 80), "false alarm": (213, 94, 0)}
WIDTH = 9.0  # inches: readable at GitHub's column width
STYLE = {
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 140,  # 1,260 pixels wide: sharp on a screen of high density
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "image.interpolation": "nearest",
}


def style() -> None:
    """Set matplotlib to the figure style; called by every notebook's set-up cell."""
    plt.rcParams.update(STYLE)


# --------------------------------------------------------------------------------- saving and showing
def save(figure: Figure, name: str) -> Path:
    """Write a figure as ``assets/figures/<name>.png``, and close it."""
    path = settings.FIGURES_DIR / f"{name}.png"
    files.remove_leftovers(path)
    with files.atomic(path) as file:
        file.write(_png(figure))
    return path


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook, with a text for those who cannot see it, and close it."""
    _display(_png(figure), alt)


def _png(figure: Figure) -> bytes:
    """The figure as a PNG of 256 colours, a third of the size of one in full colour; closes it.

    Colours that mean something, those of legends among them, are kept exactly: the reduction would give a small patch
    that of its surroundings.
    """
    from scipy.spatial import KDTree

    drawn, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    named = [patch.get_facecolor()[:3] for legend in figure.legends for patch in legend.get_patches()]
    meant = [(255, 255, 255), OUTLINE, *(np.array(to_rgb(color)) * 255 for color in (*COLORS, *named))]
    meant = np.uint8(np.round([*meant, *plt.get_cmap(SCORE_MAP)(np.linspace(0, 1, 24))[:, :3] * 255]))
    with Image.open(drawn) as opened:
        picture = opened.convert("RGB")
    common = np.uint8(picture.quantize(256 - len(meant)).getpalette()).reshape(-1, 3)
    palette = np.concatenate([meant, common])
    # Pillow's own look-up in a palette takes a near colour for the nearest.
    packed, index = np.unique(np.asarray(picture) @ (1 << 16, 1 << 8, 1), return_inverse=True)
    nearest = KDTree(palette).query(np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1))[1]
    image = Image.fromarray(np.uint8(nearest)[index].reshape(picture.height, picture.width), "P")
    image.putpalette(palette.ravel().tolist())
    image.save(reduced, format="PNG", optimize=True)
    return reduced.getvalue()


def show_file(path: Path | str, alt: str) -> None:
    """Display a PNG file in a notebook, with a text for those who cannot see it."""
    _display(Path(path).read_bytes(), alt)


def _display(png: bytes, alt: str) -> None:
    from IPython import display

    display.display(display.Image(png, alt=alt))


# --------------------------------------------------------------------------------------------- images
def image_grid(
    rows: Sequence[Sequence[np.ndarray]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    width: float = WIDTH,
) -> Figure:
    """A grid of images uint8 (H,W,3).

    ``columns`` titles the first row, ``names`` labels the rows.
    """
    image_height, image_width = rows[0][0].shape[:2]
    row_height = width / len(rows[0]) * image_height / image_width + 0.08
    size = (width, row_height * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(rows[0]), squeeze=False, figsize=size)
    for axis_row, row in zip(axes, rows, strict=True):
        for axis, image in zip(axis_row, row, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], columns, strict=False):
        axis.set_title(title)
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name, fontsize=9)
    return figure


def overlay(image: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Blend colours over an image, both uint8 (H,W,3), half and half."""
    return np.uint8(np.round(0.5 * image + 0.5 * colors))


def outline(image: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The image with the border of a boolean region (H,W) drawn outside it, two pixels wide or W / 160."""
    width = max(2, image.shape[1] // 160)  # of a large image shown small, two would vanish
    dilated = ndimage.maximum_filter(region, 2 * width + 1)
    marked = image.copy()
    marked[dilated & ~region] = OUTLINE
    return marked


def heat(score: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores (H,W) -> colours uint8 (H,W,3), linear between ``low`` and ``high``."""
    scaled = np.clip((score - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    return np.uint8(plt.get_cmap(SCORE_MAP)(scaled)[..., :3] * 255)


# ----------------------------------------------------------------------------- scores and their threshold
def above_threshold(image: np.ndarray, score: np.ndarray, low: float, high: float) -> np.ndarray:
    """The image uint8 (H,W,3) in dark grey, coloured where the score (H,W) reaches ``low``, brightest from ``high`` on.

    Of ``SCORE_MAP`` the darkest third is left out: the grey picture would swallow it.
    """
    return np.where((score >= low)[..., None], heat(score, low - (high - low) / 2, high), _grey(image))


def outcomes(image: np.ndarray, called: np.ndarray, truth: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The image in grey, pixels found, missed and falsely called in the colours of ``OUTCOMES``; masks bool (H,W)."""
    picture = _grey(image)
    regions = {"found": called & truth, "missed": ~called & truth, "false alarm": called & ~truth & ~ignored}
    for name, region in regions.items():
        picture[region] = OUTCOMES[name]
    return picture


def _grey(image: np.ndarray) -> np.ndarray:
    """Dark grey, uint8 (H,W,3): a background that no colour of a score is mistaken for."""
    return np.repeat(np.uint8(0.5 * image.mean(2, keepdims=True)), 3, axis=2)


def add_scale(figure: Figure, ticks: dict[str, float], label: str = "") -> None:
    """Below a figure of ``above_threshold``: its colour bar, with named ticks from the threshold to the brightest."""
    colors = ListedColormap(plt.get_cmap(SCORE_MAP)(np.linspace(1 / 3, 1, 256)))
    mappable = ScalarMappable(Normalize(min(ticks.values()), max(ticks.values())), colors)
    bar = figure.colorbar(mappable, ax=figure.axes, location="bottom", shrink=0.4, aspect=40, pad=0.02, anchor=(0, 1))
    bar.set_ticks(list(ticks.values()), labels=list(ticks))
    bar.set_label(label)


def add_outcomes(figure: Figure) -> None:
    """At the lower right of a figure of ``outcomes``: their legend."""
    patches = [Patch(facecolor=np.array(color) / 255, label=name) for name, color in OUTCOMES.items()]
    figure.legend(handles=patches, loc="lower right", ncols=len(patches))


# --------------------------------------------------------------------------------------------- curves
def learning_curves(history: list[dict], metrics: Sequence[str], best: int | None = None) -> Figure:
    """Training loss, learning rate and validation metrics over epochs; the chosen epoch marked."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.6))
    epochs = [row["epoch"] for row in history]
    axes[0].plot(epochs, [row["loss"] for row in history])
    axes[0].set(title="training loss", xlabel="epoch")
    for metric in metrics:
        axes[1].plot(epochs, [row[metric] for row in history], label=metric.replace("_", " "))
    axes[1].set(title="validation", xlabel="epoch")
    if best:
        axes[1].axvline(best, color="grey", linestyle=":", label=f"chosen epoch {best}")
    axes[1].legend()
    axes[2].plot(epochs, [row["lr"] for row in history])
    axes[2].set(title="learning rate", xlabel="epoch")
    return figure


def pr_roc(curves: dict[str, dict[str, np.ndarray]], base_rate: float) -> Figure:
    """Precision-recall and ROC curves; each entry holds recall, precision and fpr arrays. The last one stands out."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6))
    for rank, (name, curve) in enumerate(curves.items()):
        line = {"color": COLORS[rank % 6], "linestyle": "-" if rank < 6 else "--"}  # black and yellow left out
        if rank == len(curves) - 1:
            line = {"color": "black", "linewidth": 2}
        left.plot(curve["recall"], curve["precision"], label=name, **line)
        right.plot(curve["fpr"], curve["recall"], label=name, **line)
    left.axhline(base_rate, color="grey", linestyle=":", label=f"chance {base_rate:.3f}")
    left.set(xlabel="recall", ylabel="precision", title="precision-recall", xlim=(0, 1), ylim=(0, 1))
    right.plot([0, 1], [0, 1], color="grey", linestyle=":")
    right.axhline(0.95, color="grey", linewidth=0.8)
    right.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC (line: TPR 0.95)")
    right.set(xlim=(0, 1), ylim=(0, 1))
    left.legend()
    return figure


def bars(
    values: dict[str, float],
    xlabel: str,
    reference: dict[str, float] | None = None,
    reference_label: str = "",
) -> Figure:
    """Horizontal bars, in the order given, with an optional reference marked on each."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.28 * len(values) + 0.9))
    axis.barh(list(values), list(values.values()), height=0.7)
    if reference:
        marks = {name: reference[name] for name in values if name in reference}
        axis.plot(list(marks.values()), list(marks), "|", color="black", markersize=12, label=reference_label)
        axis.legend(loc="lower right")
    axis.invert_yaxis()
    axis.set(xlabel=xlabel)
    return figure


def dots(factors: dict[str, dict[str, np.ndarray]], in_use: dict[str, str], xlabel: str) -> Figure:
    """factor -> variant -> values by seed (N,): a dot for each, a tick at their mean; the variant in use is named bold.

    The line is at that variant's mean, the band its standard deviation over seeds (if there are several) either side.
    """
    rows = sum(len(variants) for variants in factors.values())
    figure, axes = plt.subplots(
        len(factors),
        1,
        sharex=True,
        squeeze=False,
        figsize=(WIDTH, 0.21 * rows + 0.3 * len(factors) + 0.4),
        height_ratios=[len(variants) + 0.6 for variants in factors.values()],
    )
    for axis, (factor, variants) in zip(axes[:, 0], factors.items(), strict=True):
        _draw_variants(axis, variants, in_use[factor])
        axis.set_title(factor, loc="left", fontsize=9)
    axes[-1, 0].set(xlabel=xlabel)
    return figure


def _draw_variants(axis, variants: dict[str, np.ndarray], in_use: str) -> None:
    mean = variants[in_use].mean()
    std = variants[in_use].std(ddof=1) if len(variants[in_use]) > 1 else 0
    axis.axvspan(mean - std, mean + std, color="0.9", zorder=0)
    axis.axvline(mean, color="0.6", linewidth=0.8, zorder=0)
    for row, (variant, values) in enumerate(variants.items()):
        color = COLORS[1] if variant == in_use else COLORS[0]
        axis.plot(values, np.full(len(values), row), "o", color=color, alpha=0.5, markersize=5, markeredgewidth=0)
        axis.plot(values.mean(), row, "|", color=color, markersize=13, markeredgewidth=2)
    axis.set(yticks=range(len(variants)), yticklabels=list(variants), ylim=(len(variants) - 0.5, -0.5))
    for label in axis.get_yticklabels():
        label.set(fontsize=8, fontweight="bold" if label.get_text() == in_use else "normal")
    axis.grid(False, axis="y")


# ------------------------------------------------------------------------------------------- diagrams
def flow_diagram(
    places: dict[str, tuple[float, float]], arrows: Sequence[tuple[str, str]], trained: Sequence[str]
) -> Figure:
    """Boxes at (column, row) and arrows between them; those that training changes in colour, with a thick border."""
    columns, rows = (1 + max(place[side] for place in places.values()) for side in (0, 1))
    figure, axis = plt.subplots(figsize=(WIDTH, 0.7 * rows))
    axis.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.5, -0.5))
    axis.axis("off")
    boxes = {}
    for name, (x, y) in places.items():
        line = {"edgecolor": COLORS[0], "linewidth": 2} if name in trained else {"edgecolor": "0.4"}
        text = axis.text(x, y, name, ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "white", **line})
        boxes[name] = text.get_bbox_patch()
    for start, end in arrows:
        style = {"arrowstyle": "-|>", "color": "0.3", "patchA": boxes[start], "patchB": boxes[end]}
        axis.annotate("", xy=places[end], xytext=places[start], arrowprops=style)
    return figure


def package_diagram() -> Figure:
    """How data pass through the modules of every system, from a data set on disk to what a reader sees."""
    places = {
        "data set on disk": (0, 0),
        "synthetic": (0, 1),
        "data": (1, 0),
        "model": (2, 0),
        "fitting": (3, 0),
        "checkpoint": (4, 0),
        "evaluation": (3, 1),
        "record": (4, 1),
        "figures": (3, 2),
        "notebooks, README": (4, 2),
    }
    arrows = [
        ("synthetic", "data set on disk"),
        ("data set on disk", "data"),
        ("data", "model"),
        ("model", "fitting"),
        ("fitting", "checkpoint"),
        ("checkpoint", "evaluation"),
        ("data", "evaluation"),
        ("evaluation", "record"),
        ("evaluation", "figures"),
        ("record", "notebooks, README"),
        ("figures", "notebooks, README"),
    ]
    return flow_diagram(places, arrows, trained=("checkpoint",))

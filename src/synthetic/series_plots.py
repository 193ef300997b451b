"""Series as plots, drawn by matplotlib, and the writer of a whole data set of them.

A plot is 8x6 inches at 100 dots an inch: one blue line of 1.5 points over a light grid, axes Time and Value without
the upper and right border, cut to its contents.
"""

from functools import cache, partial
from itertools import product
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src import settings
from src.synthetic.folders import fresh, run_tasks
from src.synthetic.time_series import CLASSES, VERSION, Series, generate, write_csv, write_metadata

COUNTS = {"train": 140, "val": 20, "test": 40}  # series of a class
BLUE = (31, 119, 180)  # #1f77b4
DPI = 100


@cache
def _figure() -> Figure:
    """The one figure of this process."""
    figure = Figure(figsize=(8, 6), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], color=np.divide(BLUE, 255), linewidth=1.5)
    axes.set_xlabel("Time", fontsize=12)
    axes.set_ylabel("Value", fontsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_in_layout(False)  # they lie within what ticks and labels take: measuring them takes time
    return figure


def draw(values: np.ndarray, path: Path) -> None:
    """Plot values (n,) into a PNG of about 790x590 pixels, whatever was drawn before and in whatever style."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context("default"):
        figure = _figure()
        axes = figure.axes[0]
        axes.lines[0].set_data(np.arange(len(values)), values)
        axes.relim()
        axes.autoscale_view()
        # tight_layout starts from the layout of the last plot: reset it
        sides = ("left", "bottom", "right", "top")
        figure.subplots_adjust(**{side: matplotlib.rcParams[f"figure.subplot.{side}"] for side in sides})
        figure.tight_layout()
        figure.set_layout_engine(None)  # with an engine, even a spent one, savefig draws everything twice
        box = figure.get_tightbbox(figure.canvas.get_renderer()).padded(0.1)  # "tight" would lay all out once more
        figure.savefig(path, dpi=DPI, bbox_inches=box)


def _write(task: tuple[str, str, int], root: Path, seed: int) -> tuple[str, Series]:
    split, label, number = task
    series, name = generate(label, number, split, seed), f"{split}/{label}/{number:03d}"
    draw(series.values, root / f"{name}.png")
    write_csv(series, root / f"{name}.csv")
    return name, series


def write_dataset(root: Path, seed: int = settings.SEED, counts=COUNTS, workers: int | None = None) -> None:
    """Write root/<split>/<class>/NNN.png, the same series as NNN.csv, and root/metadata.json.

    counts has the keys of COUNTS; for workers see `folders.run_tasks`. A data set of this version, seed and counts is
    kept. Raises InputError as `folders.fresh` does.
    """
    with fresh(root, "series", VERSION, seed=seed, counts=dict(counts)) as folder:
        if folder is None:
            return
        tasks = [(split, label, number) for split, label in product(counts, CLASSES) for number in range(counts[split])]
        written = run_tasks(partial(_write, root=folder, seed=seed), tasks, "series", workers)
        write_metadata(dict(written), folder / "metadata.json", seed)

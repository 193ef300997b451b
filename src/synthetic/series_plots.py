"""Series as plots, drawn by matplotlib, and the writer of a whole data set of them.

A plot is 8x6 inches at 100 dots an inch: one blue line of 1.5 points over a light grid, axes Time and Value without
the upper and right border, cut to its contents.
"""

from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from src import settings
from src.synthetic.folders import fresh
from src.synthetic.time_series import CLASSES, VERSION, Series, generate, write_csv, write_metadata

COUNTS = {"train": 140, "val": 20, "test": 40}  # series of a class
BLUE = (31, 119, 180)  # #1f77b4
DPI = 100
SIDES = ("left", "bottom", "right", "top")


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
        # tight_layout starts from the layout it finds: from the last plot's, it would depend on which one that was
        figure.subplots_adjust(**{side: matplotlib.rcParams[f"figure.subplot.{side}"] for side in SIDES})
        figure.tight_layout()
        box = figure.get_tightbbox(figure.canvas.get_renderer()).padded(0.1)  # "tight" would lay all out once more
        figure.savefig(path, dpi=DPI, bbox_inches=box)


def _write(task: tuple[str, str, int], root: Path, seed: int) -> tuple[str, Series]:
    """Write a series and its plot below root; returns the name of both files and the series."""
    split, label, number = task
    series, name = generate(label, number, split, seed), f"{split}/{label}/{number:03d}"
    draw(series.values, root / f"{name}.png")
    write_csv(series, root / f"{name}.csv")
    return name, series


def write_dataset(root: Path, seed: int = settings.SEED, counts=COUNTS, workers: int | None = None) -> None:
    """Write root/<split>/<class>/NNN.png, the same series as NNN.csv, and root/metadata.json.

    counts has the keys of COUNTS; workers is the number of processes (None: one a core; 1: this one), which the files
    do not depend on. All is written to <root>.partial, which takes root's place at the end; a data set of this
    version, seed and counts is kept. Raises InputError if root holds anything but a data set written here.
    """
    with fresh(root, "series", VERSION, seed=seed, counts=dict(counts)) as unfinished:
        if unfinished is None:
            return
        tasks = [(split, label, number) for split, label in product(counts, CLASSES) for number in range(counts[split])]
        make_pool = ThreadPool if workers == 1 else get_context("spawn").Pool
        with make_pool(workers) as pool:
            written = pool.imap(partial(_write, root=unfinished, seed=seed), tasks, 4)
            write_metadata(dict(tqdm(written, "series", len(tasks), disable=None)), unfinished / "metadata.json", seed)

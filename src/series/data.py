"""Series as plots and as numbers: class folders of plots and CSV files, the generator's own, and their folds."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from src import settings
from src.images import SUFFIXES, DataError, read_image, split_files
from src.series import envelope
from src.synthetic.time_series import CLASSES, describe, generate

LONGEST = 1_000_000  # samples of a series
LARGEST = 1e100  # absolute value of a sample
RESOLUTION = 1e-12  # least range of a series, as a share of its largest absolute value
COLUMNS = ("data", "value")  # of a CSV file, in order of preference


@dataclass(frozen=True)
class Labelled:
    """Plots or series with their classes.

    ``items``: what a view makes of plots or series (N,...); ``labels`` int64 (N,), indices into ``classes``; ``names``
    (N,), such as ``volatility/012.png``; ``known``: what the generator knows of each (`generate.describe`), where the
    series come straight from there.
    """

    items: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    known: tuple[dict, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: torch.Tensor) -> "Labelled":
        """Some of them, by int64 index, with the same classes."""
        names, known = (tuple(part[i] for i in chosen) if part else () for part in (self.names, self.known))
        return Labelled(self.items[chosen], self.labels[chosen], self.classes, names, known)


# ---------------------------------------------------------------------------------------------- files
def has_split(root: Path, split: str) -> bool:
    """Whether a folder has one of its own for the split."""
    return (root / split).is_dir()


def files(root: Path, split: str, classes: Sequence[str] = ()) -> list[Path]:
    """The series of a split, class after class, sorted or as ``classes`` are; see `images.split_files`.

    Plots, and CSV files that have no plot of their name beside them. Raises InputError for a class that has none.
    """
    found = {name: _once(own) for name, own in split_files(root, split, (*SUFFIXES, ".csv")).items()}
    if missing := [name for name in classes if name not in found]:
        raise settings.InputError(f"{root} has no class {', '.join(missing)}; there are {', '.join(found)}")
    return [file for name in classes or found for file in found[name]]


def _once(found: list[Path]) -> list[Path]:
    plotted = {file.stem for file in found if file.suffix.lower() != ".csv"}
    return [file for file in found if file.suffix.lower() != ".csv" or file.stem not in plotted]


def counts(root: Path, split: str) -> dict[str, int]:
    """class -> number of series in a split."""
    return dict(Counter(file.parent.name for file in files(root, split)))


def metadata(root: Path, names: Sequence[str], split: str) -> list[dict]:
    """What the generator knows of each plot or series named, as `generate.describe` has it; [] for the works of others.

    Raises DataError for a root/metadata.json that does not hold a name, or is of others.
    """
    path = root / "metadata.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["series"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not what is written beside generated plots: move it elsewhere") from error
    stems = [f"{split}/{Path(name).with_suffix('').as_posix()}" for name in names]
    unknown = [stem for stem in stems if stem not in rows]
    if unknown:
        raise DataError(f"{path} knows nothing of {unknown[0]}: remove what does not belong to the data set")
    return [rows[stem] for stem in stems]


# ---------------------------------------------------------------------------------------------- items
def picture(image: np.ndarray, place: str, size: tuple[int, int] = (120, 160), axes: bool = True) -> np.ndarray:
    """A view of plots: uint8 (H,W,3) reduced to (3,H,W) of ``size`` = (H,W) by area averaging.

    ``axes=False``: the line alone, on white; raises DataError naming the ``place`` where there is none.
    """
    image = image if axes else envelope.line_alone(image, place)
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX)).transpose(2, 0, 1)


def read_item(path: Path, view: tuple[Callable, Callable]) -> np.ndarray:
    """What a network sees of a file: ``view`` holds what makes it of a plot, and what makes it of numbers.

    Of a plot by ``(image uint8 (H,W,3), place)``, such as `picture` (uint8 (3,H,W)) and `envelope.of_plot` (float16
    (2,W)); of a CSV file by ``(values (n,))``, such as `raster.picture` and `envelope.of_series`. Raises DataError naming
    a file that cannot be read, or shows nothing that can be used.
    """
    of_plot, of_series = view
    if path.suffix.lower() == ".csv":
        return of_series(read_csv(path))
    return of_plot(read_image(path), str(path))


def read_series(root: Path, split: str, view: tuple[Callable, Callable], classes: Sequence[str] = ()) -> Labelled:
    """One split of a folder of class folders; see `files` and `read_item` for what is read, how, and what is raised."""
    paths = files(root, split, classes)
    with ThreadPool() as pool:
        seen = pool.imap(partial(read_item, view=view), paths, 8)
        items = torch.from_numpy(np.stack(list(tqdm(seen, "reading", len(paths), leave=False, disable=None))))
    found = list(dict.fromkeys(path.parent.name for path in paths))
    labels = torch.tensor([found.index(path.parent.name) for path in paths])
    return Labelled(items, labels, tuple(found), tuple(f"{path.parent.name}/{path.name}" for path in paths))


# --------------------------------------------------------------------------------------------- numbers
def check(values: np.ndarray, place: str) -> np.ndarray:
    """The values (n,) of a series, if they can be plotted and classified; else DataError with the place."""
    if not len(values):
        raise DataError(f"{place} is empty: a series has two samples or more")
    if len(values) > LONGEST or abs(values[np.isfinite(values)]).max(initial=0) > LARGEST:
        raise DataError(f"{place} is huge: thin it out to {LONGEST:,} samples at most, and scale it below {LARGEST:g}")
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"{place} holds {values[first]} at sample {first}: fill in or remove what is missing")
    if values.max() - values.min() <= RESOLUTION * abs(values).max():
        raise DataError(f"{place} is constant ({values[0]:g}): nothing can be told from it")
    return values


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _column(header: list[str], first: list[str], path: Path) -> int:
    """The column of the values: data, else value, else the first that holds a number."""
    names = [name.strip().lower() for name in header]
    for name in COLUMNS:
        if name in names:
            return names.index(name)
    numeric = [index for index, cell in enumerate(first) if _is_number(cell)]
    if not numeric:
        raise DataError(f"{path} has no column of numbers in its first row of data {first}: separate them by commas")
    return numeric[0]


def _number(row: list[str], column: int, place: str) -> float:
    cell = row[column].strip() if column < len(row) else ""
    if not cell:
        return math.nan
    if not _is_number(cell):
        raise DataError(f"{place}: {cell!r} is not a number; correct it")
    return float(cell)


def read_csv(path: Path | str) -> np.ndarray:
    """The values float64 (n,) of a series: the column ``data`` of a CSV file, else ``value``, else the first numeric.

    The first row may be a header; blank lines are passed over, cells left blank are missing. Raises DataError naming
    the file where it is no such table, or empty, constant, huge or with values missing.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in islice(filter(None, reader), LONGEST + 2)]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table in CSV and UTF-8 ({error}): correct the path or the file") from error
    header = rows.pop(0)[1] if rows and not any(map(_is_number, rows[0][1])) else []
    column = _column(header, rows[0][1], path) if rows else 0
    return check(np.array([_number(row, column, f"{path}, line {line}") for line, row in rows]), str(path))


# ------------------------------------------------------------------------------------------- generated
FIRST_STREAMED = 1_000_000  # series from this number on are in no data set on disk
CHUNK = 100  # series that a process draws at a time


def _drawn(task: tuple[str, range], view: Callable, split: str, seed: int) -> tuple[np.ndarray, list[dict]]:
    label, numbers = task
    series = [generate(label, number, split, seed) for number in numbers]
    return np.stack([view(one.values) for one in series]), [describe(one) for one in series]


def pool(view: Callable, count: int, classes: Sequence[str] = CLASSES, first: int = FIRST_STREAMED,
         seed: int = settings.SEED, split: str = "train", workers: int | None = None) -> Labelled:  # fmt: skip
    """Series straight from the generator, ``count`` of each class from number ``first`` on, class after class.

    ``view(values (n,))`` makes an item of a series, as `envelope.of_series` or `raster.picture` do; with more workers
    than one (None: one a core) it must be importable. What is drawn does not depend on the workers.
    """
    parts = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    tasks, draw = list(product(classes, parts)), partial(_drawn, view=view, split=split, seed=seed)
    make_pool = ThreadPool if workers == 1 else get_context("spawn").Pool
    with make_pool(workers) as processes:
        drawn = list(tqdm(processes.imap(draw, tasks), "series", len(tasks), leave=False, disable=None))
    items = torch.from_numpy(np.concatenate([items for items, _ in drawn]))
    names = tuple(f"{label}/{number}" for label, part in tasks for number in part)
    labels = torch.arange(len(classes)).repeat_interleave(count)
    return Labelled(items, labels, tuple(classes), names, tuple(row for _, rows in drawn for row in rows))


# ----------------------------------------------------------------------------------------------- folds
def folds(labels: torch.Tensor, count: int, seed: int = settings.SEED) -> torch.Tensor:
    """The fold of each item, int64 (N,) in 0..count-1: every class, and the whole, is shared out within one.

    Raises InputError for fewer than two folds, or more than the smallest class has items.
    """
    smallest = int(labels.unique(return_counts=True)[1].min())
    if not 2 <= count <= smallest:
        raise settings.InputError(f"folds={count}: choose from 2 to {smallest}, the size of the smallest class")
    generator, fold = torch.Generator().manual_seed(seed), torch.empty_like(labels)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    fold[by_class] = torch.arange(len(labels)) % count
    return fold

"""Series as the networks see them: class folders of plots and CSV files, the generator's own, and their folds."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from src import settings
from src.images import DataError, read_image, split_files
from src.labelled import Labelled
from src.series import envelope, generated
from src.series.config import ENVELOPE, FOLDERS, GENERATED, Config
from src.series.csv_files import KINDS, read_csv, without_doubles
from src.synthetic import series_plots, series_raster
from src.synthetic.time_series import CLASSES

DRAWN = 500  # series of each class in a split of the data set ``generated``
ItemMakers = tuple[Callable, Callable]  # (of a plot's pixels and its path, of a series' values) -> item


def default_root(dataset: str) -> Path:
    """Where a data set lies unless it is said."""
    return settings.DATA_DIR / FOLDERS.get(dataset, dataset)


def class_names(config: Config) -> tuple[str, ...]:
    """The classes that the labels of a config count."""
    return config.classes or CLASSES


# --------------------------------------------------------------------------------------------- splits
def datasets(
    config: Config, root: Path | None = None, splits: Sequence[str] = ("train", "val", "test"), column: str = ""
) -> dict[str, Labelled]:
    """split asked for -> plots as the network's items; val is a fold of train where there is none on disk.

    ``column`` of CSV files: see `csv_files.read_csv`.
    """
    root = root or default_root(config.dataset)
    parts = {split: read_split(config, root, split, column) for split in splits if has_split(config, root, split)}
    if "train" in splits and "train" not in parts:
        raise DataError(f"{root} has no train/<class> folders of plots or CSV (mini: python -m src series data)")
    if "train" in parts and not has_split(config, root, "val"):
        plots = parts["train"]
        fold = folds(plots.labels, config.folds, config.seed)
        for split, is_chosen in (("train", fold != 0), ("val", fold == 0)):
            parts[split] = plots.subset(torch.where(is_chosen)[0])
    return parts


def has_split(config: Config, root: Path, split: str) -> bool:
    """Whether a split is there by itself: a folder of its own, or the generator's."""
    return config.dataset == GENERATED or (root / split).is_dir()


def folder_of(config: Config, root: Path, split: str) -> str:
    """The folder that a split lies in: its own, but train for a validation split that is a fold of it."""
    has_train = config.cross_validate or has_split(config, root, "train")
    return "train" if split == "val" and has_train and not has_split(config, root, "val") else split


def read_split(config: Config, root: Path, split: str, column: str = "") -> Labelled:
    """The series of a split on disk, or (data set ``generated``) as many drawn for it alone.

    Labelled by the config's classes, of which a folder may lack some but (unless they are chosen) bring no other.
    """
    makers, classes = item_makers(config), class_names(config)
    if config.dataset == GENERATED:
        return generated.draw_series(makers[1], generated.epoch_numbers(DRAWN), classes, config.seed, split)
    plots = read_folder(root, split, makers, config.classes, column)
    unknown = sorted(set(plots.classes) - set(classes))
    if unknown:
        raise settings.InputError(
            f"{root} holds classes that are not known: {', '.join(unknown)}; known are {', '.join(classes)}; "
            "to train on others, name them: classes=..."
        )
    numbers = torch.tensor([classes.index(name) for name in plots.classes])
    return replace(plots, labels=numbers[plots.labels], classes=classes)


def distribution(config: Config, root: Path) -> dict[str, dict[str, int]]:
    """split -> class -> number of its series."""
    splits = ["train", *(split for split in ("val", "test") if has_split(config, root, split))]
    return {split: dict(Counter(file.parent.name for file in files(root, split))) for split in splits}


def write_mini(root: Path) -> None:
    """Write the synthetic data set: plots, the same series as CSV, and what the generator knows of them."""
    series_plots.write_dataset(root)


# ---------------------------------------------------------------------------------------------- files
def files(root: Path, split: str, classes: Sequence[str] = ()) -> list[Path]:
    """The series of a split, class after class, sorted or as ``classes`` are; see `images.split_files`.

    Less what `csv_files.without_doubles` drops. Raises InputError for a class that has none.
    """
    by_class = split_files(root, split, KINDS)
    missing = [name for name in classes if name not in by_class]
    if missing:
        raise settings.InputError(f"{root} has no class {', '.join(missing)}; there are {', '.join(by_class)}")
    return [file for name in classes or by_class for file in without_doubles(by_class[name])]


def metadata(root: Path, names: Sequence[str], split: str) -> list[dict]:
    """What the generator knows of each plot or series named, as `time_series.describe` has it; [] for others' plots.

    Raises DataError for a root/metadata.json that does not hold a name, or that the generator did not write.
    """
    path = root / "metadata.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["series"]
        known = {
            name: {**row, "length": int(row["length"]), "events": list(row["events"])} for name, row in rows.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not what is written beside generated plots: move it elsewhere") from error
    stems = [f"{split}/{Path(name).with_suffix('').as_posix()}" for name in names]
    unknown = [stem for stem in stems if stem not in known]
    if unknown:
        raise DataError(f"{path} knows nothing of {unknown[0]}: remove what does not belong to the data set")
    return [known[stem] for stem in stems]


# ---------------------------------------------------------------------------------------------- items
def item_makers(config: Config) -> ItemMakers:
    """What makes the item that the config's network sees, of a plot and of the numbers of a series."""
    if config.backbone == ENVELOPE:
        return envelope.of_plot, envelope.of_series
    form = {"size": config.size, "axes": config.axes}
    return partial(picture, **form), partial(series_raster.picture, **form)


def picture(image: np.ndarray, place: str, size: tuple[int, int] = (120, 160), axes: bool = True) -> np.ndarray:
    """A plot uint8 (H,W,3) reduced to (3,H,W) of ``size`` = (H,W) by area averaging.

    ``axes=False``: the line alone, on white; raises DataError naming the ``place`` where there is none.
    """
    image = image if axes else envelope.line_alone(image, place)
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX)).transpose(2, 0, 1)


def read_item(path: Path, makers: ItemMakers, column: str = "") -> np.ndarray:
    """The item of a plot or CSV file: uint8 (3,H,W) of `picture`, or float16 (2,W) of `envelope`.

    Raises DataError naming a file that cannot be read, or shows nothing that can be used.
    """
    of_plot, of_series = makers
    if path.suffix.lower() == ".csv":
        return of_series(read_csv(path, column))
    return of_plot(read_image(path), str(path))


def read_items(paths: Sequence[Path], makers: ItemMakers, column: str = "") -> torch.Tensor:
    """`read_item` of many files, with a bar."""
    with ThreadPool() as pool:
        items = pool.imap(partial(read_item, makers=makers, column=column), paths, 8)
        bar = tqdm(items, "reading", len(paths), leave=False, disable=len(paths) < 2 or None)
        return torch.from_numpy(np.stack(list(bar)))


def read_folder(root: Path, split: str, makers: ItemMakers, classes: Sequence[str] = (), column: str = "") -> Labelled:
    """One split of a folder of class folders; see `files` and `read_item` for what is read, how, and what is raised."""
    paths = files(root, split, classes)
    items = read_items(paths, makers, column)
    present = tuple(dict.fromkeys(path.parent.name for path in paths))
    labels = torch.tensor([present.index(path.parent.name) for path in paths])
    names = tuple(f"{path.parent.name}/{path.name}" for path in paths)
    return Labelled(items, labels, present, names)


# ----------------------------------------------------------------------------------------------- folds
def folds(labels: torch.Tensor, count: int, seed: int = settings.SEED) -> torch.Tensor:
    """The fold of each item, int64 (N,) in 0..count-1: each class, and all together, are shared out to within one.

    Committed weights depend on this draw. Raises InputError for fewer than two folds, or more than the smallest class
    has items.
    """
    smallest = int(labels.unique(return_counts=True)[1].min())
    if not 2 <= count <= smallest:
        raise settings.InputError(f"folds={count}: choose from 2 to {smallest}, the size of the smallest class")
    fold = torch.empty_like(labels)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    fold[by_class] = torch.arange(len(labels)) % count
    return fold

"""Images of parts, normal or defective, in four on-disk layouts, and the semi-supervised split engine.

Training sees normal images only; validation and test share out the defective ones.
"""

import csv
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from src import records, settings
from src.defects.config import FOLDERS, Config
from src.images import SUFFIXES, DataError, by_name, list_images, note, read_image, read_labels, visible
from src.synthetic import textures

NORMAL = "good"
DEFECT = "defect"  # the kind of defect in layouts that tell only normal from anomalous
SPLITS = ("train", "val", "test")
MVTEC_PERCENT = (85, 15, 0)  # train/good into train and val, where the layout has a test split of its own
LABELS = 16  # a mask of at most so many values, all small, holds labels; of more, grey levels


@dataclass(frozen=True)
class Item:
    """One image on disk. ``mask`` shows where the defect is; None for normal images, or where it is not known.

    ``grey_mask``: the mask was a JPEG once, so that it has grey values other than 0 and 255.
    """

    image: Path
    defect: str = NORMAL
    mask: Path | None = None
    grey_mask: bool = False

    @property
    def is_anomalous(self) -> bool:
        return self.defect != NORMAL


Splits = dict[str, list[Item]]


# -------------------------------------------------------------------------------------------- splits
def default_root(dataset: str) -> Path:
    """Where a data set lies by default."""
    return settings.DATA_DIR / FOLDERS.get(dataset, dataset)


def write_mini(root: Path) -> None:
    """Write the synthetic data set: fabric, tiles and bolts in the layout of MVTec AD, and images for a teacher."""
    textures.write_dataset(root)


def datasets(config: Config, root: Path | None = None) -> dict[str, dict[str, "DefectDataset"]]:
    """category -> split (train, val, test) -> DefectDataset, read from ``root`` (default: below DATA_DIR)."""
    root = Path(root or default_root(config.dataset))
    names = config.categories or (categories(root) if config.dataset == "mvtec" else [])
    folders = {name: name for name in names} or {config.dataset: ""}
    return {
        category: {
            name: DefectDataset(items, root)
            for name, items in read(config.dataset, root, folder, config.percent, config.seed).items()
        }
        for category, folder in folders.items()
    }


def distribution(config: Config, root: Path) -> dict[str, dict[str, dict[str, int]]]:
    """category -> split -> kind -> number of images, normal ones first."""
    return {
        category: counts({name: dataset.items for name, dataset in splits.items()})
        for category, splits in datasets(config, root).items()
    }


def counts(splits: Splits) -> dict[str, dict[str, int]]:
    """split -> kind -> number of images, normal ones first."""
    totals = {name: Counter(item.defect for item in items) for name, items in splits.items()}
    return {
        name: {kind: total[kind] for kind in sorted(total, key=lambda kind: (kind != NORMAL, kind))}
        for name, total in totals.items()
    }


def read(dataset: str, root: Path, category: str = "", percent: Sequence[int] = (), seed: int = 42) -> Splits:
    """The train, val and test items of a data set in one of ``FORMATS``, shared out by ``split``.

    ``mini`` and ``mvtec`` lie under ``root/category``. For them ``percent=()`` keeps the test split they come with
    and divides train/good 85:15, so that val is all normal. DataError names what is wrong in the files.
    """
    root = Path(root)
    if dataset not in FORMATS:
        raise DataError(f"dataset {dataset!r} is unknown: choose from {', '.join(FORMATS)}")
    if dataset in POOLED and (category or not percent):
        fault = f"no category {category!r}: leave it out" if category else "no split: give percent=70,15,15"
        raise DataError(f"{dataset} data comes with {fault}")
    train, test = (POOLED[dataset](root), []) if dataset in POOLED else _mvtec(root / category)
    try:
        if percent:
            return split(train + test, percent, seed)
        return {**split(train, MVTEC_PERCENT, seed), "test": test}
    except DataError as error:
        raise DataError(f"{root / category}: {error}") from error


def split(items: Sequence[Item], percent: Sequence[int], seed: int) -> Splits:
    """Semi-supervised split by ``percent`` = (train, val, test), each split in the natural order of its paths.

    The train share applies to normal images alone. Anomalous ones go to val and test in the ratio val:test,
    each kind within 1 of its share. The order of ``items`` does not matter. DataError if the request is impossible.
    Committed weights depend on this very draw.
    """
    kinds: dict[str, list[Item]] = {NORMAL: []}
    for before, item in pairwise([None, *_ordered(items)]):
        if before and before.image == item.image:
            raise DataError(f"{item.image} is listed twice: remove one")
        kinds.setdefault(item.defect, []).append(item)
    for kind, group in kinds.items():
        random.Random(f"{seed}/{kind}").shuffle(group)
    normal = kinds.pop(NORMAL)
    train, val, _ = _normal_counts(len(normal), percent)
    splits = {"train": normal[:train], "val": normal[train : train + val], "test": normal[train + val :]}
    if kinds and percent[0] == 100:
        raise DataError("val and test have no share, but some images are anomalous: give one of them a share")
    groups = [kinds[kind] for kind in sorted(kinds)]
    shares = [Fraction(len(group) * percent[1], 100 - percent[0]) for group in groups]
    in_val = math.floor(sum(shares) + Fraction(1, 2))
    for group, number in zip(groups, _apportion(in_val, shares), strict=True):
        splits["val"] += group[:number]
        splits["test"] += group[number:]
    return {name: _ordered(part) for name, part in splits.items()}


def _normal_counts(count: int, percent: Sequence[int]) -> list[int]:
    """Normal images for (train, val, test); DataError where a split with a share would get none."""
    numbers = _apportion(count, [Fraction(count * share, 100) for share in percent])
    for name, share, number in zip(SPLITS, percent, numbers, strict=True):
        if share and not number:
            stated = f"percent={','.join(map(str, percent))}"
            raise DataError(f"{stated} leaves {name} none of {count} normal image(s): add some or change the shares")
    return numbers


def _apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Integers that sum to ``total``, each within 1 of its share: the largest remainders are rounded up."""
    numbers = [int(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: numbers[i] - shares[i])  # stable: of equals, the first
    for i in order[: total - sum(numbers)]:
        numbers[i] += 1
    return numbers


def _ordered(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: _natural(item.image))


def _natural(path: Path) -> tuple:
    """Sort key in which part 2 comes before part 10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], path.as_posix()


# ------------------------------------------------------------------------------------------- layouts
def categories(root: Path) -> list[str]:
    """Folders under an MVTec-style root that hold ``train/good``."""
    return [folder.name for folder in _folders(Path(root)) if (folder / "train" / NORMAL).is_dir()]


def pooled(dataset: str, root: Path) -> list[Item]:
    """All items of a data set whose layout has no splits."""
    if dataset not in POOLED:
        raise DataError(f"dataset {dataset!r} is unknown: choose from {', '.join(FORMATS)}")
    return POOLED[dataset](Path(root))


def _mvtec(root: Path) -> tuple[list[Item], list[Item]]:
    """The training and the test images of one category in the layout of MVTec AD (Bergmann et al., CVPR 2019)."""
    kinds = [folder.name for folder in _folders(root / "train")]
    if kinds != [NORMAL]:
        raise DataError(f"{root / 'train'} must hold the folder {NORMAL!r} alone, not {kinds}: move others to test")
    test, truth = [], root / "ground_truth"
    for folder in _folders(root / "test"):
        if folder.name == NORMAL or not truth.is_dir():
            test += _items(folder, folder.name)
        else:
            masks = truth / folder.name
            remedy = f"add it to {masks}, or move {truth} away to do without masks"
            test += _items(folder, folder.name, masks, remedy)
    if not test:
        raise DataError(f"{root / 'test'} is empty: expected {NORMAL} and a folder for each kind of defect")
    return _items(root / "train" / NORMAL, NORMAL), test


def _folder(root: Path) -> list[Item]:
    """``images/good`` and, where there are any, ``images/defect``, and ``masks/<stem>.png`` of the latter."""
    kinds = {folder.name for folder in _folders(root / "images")}
    if not {NORMAL} <= kinds <= {NORMAL, DEFECT}:
        rule = f"must hold the folder {NORMAL} and may hold {DEFECT}"
        raise DataError(f"{root / 'images'} {rule}, not {sorted(kinds)}: rename them")
    normal = _items(root / "images" / NORMAL, NORMAL)
    return normal + (_items(root / "images" / DEFECT, DEFECT, root / "masks") if DEFECT in kinds else [])


def _magnetic_tile(root: Path) -> list[Item]:
    """Magnetic tile defects (Huang et al. 2020): ``MT_<Kind>[/Imgs]/NAME.jpg`` beside its mask ``NAME.png``."""
    items = []
    for folder in _folders(root):
        kind = folder.name.removeprefix("MT_").lower()
        if not folder.name.startswith("MT_"):
            continue
        folder = folder / "Imgs" if (folder / "Imgs").is_dir() else folder
        files = _images(folder)
        photographs = by_name([path for path in files if path.suffix.lower() in (".jpg", ".jpeg")], folder)
        masks = by_name([path for path in files if path.suffix.lower() == ".png"], folder)
        if kind == "free":  # whose masks are blank
            items += [Item(path) for path in photographs.values()]
        else:
            items += _paired(photographs, kind, masks, "fetch the data set again", grey_mask=True)
    if not items:
        raise DataError(f"{root} holds no folders MT_Free, MT_Blowhole, ...: check the root")
    return items


def _csv(root: Path) -> list[Item]:
    """``labels.csv`` with paths relative to its folder; ``root`` is that folder or the table itself."""
    table = root if root.is_file() else root / "labels.csv"
    items: dict[Path, Item] = {}
    for place, row in _rows(table):
        image, flag, mask = _inside(table.parent, row["filename"], place), row["is_anomalous"], row.get("mask_path")
        key = image.with_suffix("")
        if key in items:
            raise DataError(f"{place}: {image} repeats {items[key].image} or its name; remove or rename one")
        if flag not in ("0", "1"):
            raise DataError(f"{place}: is_anomalous is {flag!r}; write 0 or 1")
        if mask and flag == "0":
            raise DataError(f"{place}: {image} is normal but has a mask; remove mask_path or set is_anomalous to 1")
        kind = DEFECT if flag == "1" else NORMAL
        items[key] = Item(image, kind, _inside(table.parent, mask, place) if mask else None)
    return list(items.values())


POOLED = {"folder": _folder, "csv": _csv, "magnetic_tile": _magnetic_tile}  # layouts without splits
NESTED = ("mini", "mvtec")  # layouts with a folder for each category, and splits of their own
FORMATS = (*NESTED, *POOLED)


def _folders(root: Path) -> list[Path]:
    """The visible folders in ``root``, in natural order; DataError where it is no folder."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: check the root, the category and the layout of the data set")
    return sorted((path for path in visible(root) if path.is_dir()), key=_natural)


def _images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; DataError where there are none."""
    files = sorted(list_images(folder), key=_natural)
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)}): add some or remove the folder")
    return files


def _items(folder: Path, kind: str, mask_folder: Path | None = None, remedy: str = "") -> list[Item]:
    """Images of one kind with their masks, ``<stem>_mask`` or ``<stem>``.

    DataError for a mask without image, and with a ``remedy`` also for an image without mask.
    """
    masks = by_name(list_images(mask_folder), mask_folder, "_mask") if mask_folder else {}
    return _paired(by_name(_images(folder), folder), kind, masks, remedy)


def _paired(
    images: dict[str, Path], kind: str, masks: dict[str, Path], remedy: str = "", grey_mask: bool = False
) -> list[Item]:
    """Items of images and masks by name; DataError as ``_items`` says."""
    for name, mask in masks.items():
        if name not in images:
            raise DataError(f"{mask} is a mask of no {kind!r} image: rename or remove it")
    for name, image in images.items():
        if remedy and name not in masks:
            raise DataError(f"{image} has no mask: {remedy}")
    return [Item(path, kind, masks.get(name), grey_mask) for name, path in images.items()]


def _rows(table: Path) -> Iterator[tuple[str, dict]]:
    """(file and line, row) of a label table; columns and number of fields are checked."""
    required, known = {"filename", "is_anomalous"}, {"filename", "is_anomalous", "mask_path"}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            columns = reader.fieldnames or []
            if not required <= set(columns) <= known or len(columns) > len(set(columns)):
                raise DataError(f"{table}, line 1: expected columns filename,is_anomalous[,mask_path], not {columns}")
            for row in reader:
                place = f"{table}, line {reader.line_num}"
                if None in row:
                    raise DataError(f"{place}: more than {len(columns)} fields; quote names that hold a comma")
                yield place, {column: value.strip() for column, value in row.items()}
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is not a table in CSV and UTF-8 ({error}): write it, or correct the root") from error


def _inside(root: Path, name: str, place: str) -> Path:
    """The image file ``name`` under ``root``, links and ``..`` resolved."""
    path, base = (root / name).resolve(), root.resolve()
    if not path.is_relative_to(base):
        raise DataError(f"{place}: {name} is outside {base}; copy it there")
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        state = f"is not an image ({', '.join(SUFFIXES)})" if path.is_file() else f"does not exist under {base}"
        raise DataError(f"{place}: {name!r} {state}; correct the name")
    return root / path.relative_to(base)


# ------------------------------------------------------------------------------------------- samples
class DefectDataset(Dataset):
    """Samples of ``items`` with names relative to ``root``, in the order given.

    A sample is ``{"image": Image uint8 (3,H,W), "is_anomalous": bool, "mask": Mask bool (1,H,W) or None,
    "defect": str, "name": str}``: normal masks are all False, an anomalous image has None where its mask is missing or
    marks nothing. Reading one raises DataError for damaged files and for a mask of another size.
    """

    def __init__(self, items: Sequence[Item], root: Path):
        self.items, self.root = list(items), Path(root)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        image = read_image(item.image)
        mask = _mask(item, image.shape[:2])
        return {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            "is_anomalous": item.is_anomalous,
            "mask": None if mask is None else tv_tensors.Mask(torch.from_numpy(mask)[None]),
            "defect": item.defect,
            "name": _name(item, self.root),
        }

    def normal(self) -> "DefectDataset":
        """The normal images alone."""
        return DefectDataset([item for item in self.items if not item.is_anomalous], self.root)

    def files(self) -> list[Path]:
        """Every file behind the samples, masks included."""
        return [path for item in self.items for path in (item.image, item.mask) if path]


def _name(item: Item, root: Path) -> str:
    base = root.parent if root.is_file() else root
    return item.image.relative_to(base).as_posix() if item.image.is_relative_to(base) else item.image.name


def _mask(item: Item, size: tuple[int, int]) -> np.ndarray | None:
    """Where the defect is, bool of ``size``; None where that is not known."""
    if not item.is_anomalous:
        return np.zeros(size, dtype=bool)
    if item.mask is None:
        return None
    mask = read_mask(item.mask, item.grey_mask)
    if mask.shape != size:
        sizes = "{1}x{0}, but {2} is {4}x{3}".format(*mask.shape, item.image, *size)
        raise DataError(f"{item.mask} is {sizes}: export the mask at the size of its image")
    if not mask.any():
        note(item.mask, f"marks nothing, but {item.image} is anomalous: left out of pixel metrics")
        return None
    return mask


def read_mask(path: Path, is_grey: bool = False) -> np.ndarray:
    """Where a mask marks a defect, bool (H,W).

    In a palette image every index but 0 marks one. Of grey values, those above 127, or all but 0 where the values are
    labels: 0, 1 and 255 alone, or a few small ones. ``is_grey``: they are no labels, however few and small.
    """
    if _has_colored_palette(path):
        return read_labels(path) > 0
    grey = read_image(path, "L")
    values = np.unique(grey)
    are_labels = set(values) <= {0, 1, 255} or (values.max() <= 127 and len(values) <= LABELS)
    return grey > (0 if are_labels and not is_grey else 127)


def _has_colored_palette(path: Path) -> bool:
    colors = read_image(path, "RGB")
    with Image.open(path) as image:
        return image.mode == "P" and bool((colors != colors[..., :1]).any())


def fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Number and SHA-256 of files, wherever their folder lies."""
    return records.fingerprint(files, Path(os.path.commonpath(files)))


def require_upright_masks(dataset: DefectDataset) -> None:
    """DataError where the masks mark more than half of all pixels: then they mark what is not defective."""
    masks = [read_mask(item.mask, item.grey_mask) for item in dataset.items if item.mask]
    share = sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))
    if share > 0.5:
        example = next(item.mask for item in dataset.items if item.mask)
        raise DataError(f"masks such as {example} mark {share:.0%} of all pixels as defective: are they inverted?")

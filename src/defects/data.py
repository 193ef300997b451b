"""Images of parts, normal or defective, in four on-disk layouts, and the semi-supervised split engine.

Training sees normal images only; validation and test share out the defective ones.
"""

import csv
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from src.images import SUFFIXES, DataError, read_image

NORMAL = "good"
DEFECT = "defect"  # the kind of defect in layouts that tell only normal from anomalous
MVTEC_PERCENT = (85, 15, 0)  # train/good into train and val, where the layout has a test split of its own


@dataclass(frozen=True)
class Item:
    """One image on disk. ``mask`` shows where the defect is; None for normal images, or where it is not known."""

    image: Path
    defect: str = NORMAL
    mask: Path | None = None

    @property
    def is_anomalous(self) -> bool:
        return self.defect != NORMAL


Splits = dict[str, list[Item]]


def _natural(path: Path) -> tuple:
    """Sort key in which part 2 comes before part 10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], path.as_posix()


def _ordered(items: Iterable[Item]) -> list[Item]:
    return sorted(items, key=lambda item: _natural(item.image))


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: check the root, the category and the layout of the data set")
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_natural)


def _images(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """stem -> image of a folder that holds images only; those of other ``suffixes`` are left out."""
    found: dict[str, Path] = {}
    for path in _visible(folder):
        if path.is_dir() or path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} is not an image ({', '.join(SUFFIXES)}): move it out of {folder}")
        if path.suffix.lower() in suffixes:
            if path.stem in found:
                raise DataError(f"{found[path.stem]} and {path.name} share one name: which is it? Remove the other")
            found[path.stem] = path
    if not found:
        raise DataError(f"{folder} holds no {'/'.join(suffixes)} images: add some or remove the folder")
    return found


def _items(found: dict[str, Path], kind: str, masks: dict[str, Path] | None = None, demand: str = "") -> list[Item]:
    """Images of one kind with their masks, ``<stem>_mask`` or ``<stem>``; ``demand`` says what to do if one lacks."""
    rest = dict(masks or {})
    items = [Item(path, kind, rest.pop(f"{stem}_mask", None) or rest.pop(stem, None)) for stem, path in found.items()]
    if rest:
        raise DataError(f"{next(iter(rest.values()))} is a mask of no {kind!r} image: rename or remove it")
    for item in items:
        if demand and item.mask is None:
            raise DataError(f"{item.image} has no mask: {demand}")
    return items


def categories(root: Path) -> list[str]:
    """Folders under an MVTec-style root that hold ``train/good``."""
    return [path.name for path in _visible(Path(root)) if (path / "train" / NORMAL).is_dir()]


def _mvtec(root: Path) -> tuple[list[Item], list[Item]]:
    """The training and the test images of one category in the layout of MVTec AD (Bergmann et al., CVPR 2019)."""
    found = [path.name for path in _visible(root / "train")]
    if found != [NORMAL]:
        raise DataError(f"{root / 'train'} must hold the folder {NORMAL!r} alone, not {found}: move others to test")
    test, truth = [], root / "ground_truth"
    for folder in _visible(root / "test"):
        kind, masks = folder.name, truth / folder.name
        if kind == NORMAL or not truth.is_dir():
            test += _items(_images(folder), kind)
        else:
            remedy = f"add it to {masks}, or move {truth} away to do without masks"
            test += _items(_images(folder), kind, _images(masks) if masks.is_dir() else {}, remedy)
    if not test:
        raise DataError(f"{root / 'test'} is empty: expected {NORMAL} and a folder for each kind of defect")
    return _items(_images(root / "train" / NORMAL), NORMAL), test


def _folder(root: Path) -> list[Item]:
    """``images/good`` and, where there are any, ``images/defect``, and ``masks/<stem>.png`` of the latter."""
    base, masks = root / "images", root / "masks"
    found = {path.name for path in _visible(base)}
    if not {NORMAL} <= found <= {NORMAL, DEFECT}:
        raise DataError(f"{base} must hold the folder {NORMAL} and may hold {DEFECT}, not {sorted(found)}: rename them")
    if DEFECT not in found:
        return _items(_images(base / NORMAL), NORMAL)
    bad = _items(_images(base / DEFECT), DEFECT, _images(masks) if masks.is_dir() else {})
    return _items(_images(base / NORMAL), NORMAL) + bad


def _magnetic_tile(root: Path) -> list[Item]:
    """Magnetic tile defects (Huang et al. 2020): ``MT_<Kind>[/Imgs]/NAME.jpg`` beside its mask ``NAME.png``."""
    items = []
    for folder in (path for path in _visible(root) if path.name.startswith("MT_") and path.is_dir()):
        kind = folder.name.removeprefix("MT_").lower()
        folder = folder / "Imgs" if (folder / "Imgs").is_dir() else folder
        found = _images(folder, (".jpg", ".jpeg"))
        if kind == "free":
            items += _items(found, NORMAL)
        else:
            items += _items(found, kind, _images(folder, (".png",)), "fetch the data set again")
    if not items:
        raise DataError(f"{root} holds no folders MT_Free, MT_Blowhole, ...: check the root")
    return items


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


def _apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Integers that sum to ``total``, each within 1 of its share: the largest remainders are rounded up."""
    numbers = [int(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: numbers[i] - shares[i])  # stable: of equals, the first
    for i in order[: total - sum(numbers)]:
        numbers[i] += 1
    return numbers


def _normal_counts(count: int, percent: Sequence[int]) -> list[int]:
    """Normal images for (train, val, test), or the reason why ``percent`` is impossible."""
    stated = f"percent={','.join(map(str, percent))}"
    whole = all(isinstance(share, int) and share >= 0 for share in percent)
    if not whole or len(percent) != 3 or sum(percent) != 100 or not percent[0]:
        raise DataError(f"{stated}: give whole numbers for train,val,test that sum to 100, train above 0, none below")
    numbers = _apportion(count, [Fraction(count * share, 100) for share in percent])
    for name, share, number in zip(("train", "val", "test"), percent, numbers, strict=True):
        if share and not number:
            raise DataError(f"{stated} leaves {name} none of {count} normal image(s): add some or change the shares")
    return numbers


def split(items: Sequence[Item], percent: Sequence[int], seed: int) -> Splits:
    """Semi-supervised split by ``percent`` = (train, val, test), each split in the natural order of its paths.

    The train share applies to normal images alone. Anomalous ones go to val and test in the ratio val:test,
    each kind within 1 of its share. The order of ``items`` does not matter. DataError if the request is impossible.
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


def counts(splits: Splits) -> dict[str, dict[str, int]]:
    """split -> kind -> number of images, normal ones first."""
    found = {name: Counter(item.defect for item in items) for name, items in splits.items()}
    return {name: {k: c[k] for k in sorted(c, key=lambda k: (k != NORMAL, k))} for name, c in found.items()}


_POOLED = {"folder": _folder, "csv": _csv, "magnetic_tile": _magnetic_tile}
NESTED = ("mini", "mvtec")  # layouts with a folder for each category, and splits of their own
FORMATS = (*NESTED, *_POOLED)


def pooled(dataset: str, root: Path) -> list[Item]:
    """All items of a data set whose layout has no splits."""
    if dataset not in _POOLED:
        raise DataError(f"dataset {dataset!r}: expected a layout without splits: {', '.join(_POOLED)}")
    return _POOLED[dataset](Path(root))


def read(dataset: str, root: Path, category: str = "", percent: Sequence[int] = (), seed: int = 42) -> Splits:
    """The train, val and test items of a data set in one of ``FORMATS``, shared out by ``split``.

    ``mini`` and ``mvtec`` lie under ``root/category``. For them ``percent=()`` keeps the test split they come with
    and divides train/good 85:15, so that val is all normal. DataError names what is wrong in the files.
    """
    root = Path(root)
    if dataset not in FORMATS:
        raise DataError(f"dataset {dataset!r} is unknown: choose from {', '.join(FORMATS)}")
    if dataset in _POOLED and (category or not percent):
        wrong = f"no category {category!r}: leave it out" if category else "no split: give percent=70,15,15"
        raise DataError(f"{dataset} data comes with {wrong}")
    train, test = (_POOLED[dataset](root), []) if dataset in _POOLED else _mvtec(root / category)
    try:
        if percent:
            return split(train + test, percent, seed)
        return {**split(train, MVTEC_PERCENT, seed), "test": test}
    except DataError as error:
        raise DataError(f"{root / category}: {error}") from error


def _mask(item: Item, size: tuple[int, int]) -> np.ndarray | None:
    """Where the defect is, bool of ``size``; a grey value above 127 is defect, as JPEG-born masks are not binary."""
    if not item.is_anomalous:
        return np.zeros(size, dtype=bool)
    if item.mask is None:
        return None
    mask = read_image(item.mask, "L") > 127
    if mask.shape != size:
        sizes = "{1}x{0}, but {2} is {4}x{3}".format(*mask.shape, item.image, *size)
        raise DataError(f"{item.mask} is {sizes}: export the mask at the size of its image")
    if not mask.any():
        raise DataError(f"{item.mask} marks nothing (no value above 127), but {item.image} is anomalous: correct one")
    return mask


def _name(item: Item, root: Path) -> str:
    base = root.parent if root.is_file() else root
    return item.image.relative_to(base).as_posix() if item.image.is_relative_to(base) else item.image.name


class DefectDataset(Dataset):
    """Samples of ``items`` with names relative to ``root``, in the order given.

    A sample is ``{"image": Image uint8 (3,H,W), "is_anomalous": bool, "mask": Mask bool (1,H,W) or None,
    "defect": str, "name": str}``: normal masks are all False, an anomalous image without mask has None.
    Reading one raises DataError for damaged files, a mask of another size and a mask that marks nothing.
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


def paths(dataset: DefectDataset) -> Iterable[Path]:
    """Every file behind a data set, for its fingerprint."""
    return (path for item in dataset.items for path in (item.image, item.mask) if path)

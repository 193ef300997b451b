"""The on-disk layouts of images of parts, read into items: one image, its kind of defect and its mask.

MVTec AD's folders, ``images``/``masks`` folders, a table ``labels.csv``, and the magnetic tile set as published.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.images import SUFFIXES, DataError, by_name, list_images, visible

NORMAL = "good"
DEFECT = "defect"  # the kind of defect in layouts that tell only normal from anomalous


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


def categories(root: Path) -> list[str]:
    """Folders under an MVTec-style root that hold ``train/good``."""
    return [folder.name for folder in _folders(Path(root)) if (folder / "train" / NORMAL).is_dir()]


def pooled(dataset: str, root: Path) -> list[Item]:
    """All items of a data set whose layout has no splits."""
    if dataset not in POOLED:
        raise DataError(f"dataset {dataset!r} is unknown: choose from {', '.join(FORMATS)}")
    return POOLED[dataset](Path(root))


def mvtec(root: Path) -> tuple[list[Item], list[Item]]:
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
    return sorted((path for path in visible(root) if path.is_dir()), key=natural_key)


def _images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; DataError where there are none."""
    files = sorted(list_images(folder), key=natural_key)
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


def natural_key(path: Path) -> tuple:
    """Sort key in which part 2 comes before part 10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], path.as_posix()

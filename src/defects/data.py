"""Images of parts, normal or defective: the semi-supervised splits, and the samples of each.

Training sees normal images only; validation and test share out the defective ones.
"""

import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
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
from src.defects.layouts import FORMATS, NORMAL, POOLED, Item, categories, mvtec, natural_key
from src.images import DataError, note, read_image, read_labels
from src.synthetic import textures

SPLITS = ("train", "val", "test")
MVTEC_PERCENT = (85, 15, 0)  # train/good into train and val, where the layout has a test split of its own
LABELS = 16  # a mask of at most so many values, all small, holds labels; of more, grey levels

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
    train, test = (POOLED[dataset](root), []) if dataset in POOLED else mvtec(root / category)
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
    return sorted(items, key=lambda item: natural_key(item.image))


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

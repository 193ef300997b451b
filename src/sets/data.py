"""Labelled images from class folders or CIFAR-100's own files, the choice of classes, and the splits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR100
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from src import settings
from src.images import DataError, class_files, read_image, split_files
from src.labelled import Labelled
from src.sets.config import FOLDERS, Config
from src.synthetic import glyphs

OFFICIAL = "cifar-100-python"  # torchvision's own folder
# One class of each of CIFAR-100's twenty superclasses (Krizhevsky, 2009): the first by name
DIVERSE = (
    "beaver",
    "aquarium_fish",
    "orchid",
    "bottle",
    "apple",
    "clock",
    "bed",
    "bee",
    "bear",
    "bridge",
    "cloud",
    "camel",
    "fox",
    "crab",
    "baby",
    "crocodile",
    "hamster",
    "maple_tree",
    "bicycle",
    "lawn_mower",
)


# ----------------------------------------------------------------------------------------- from the disk
def default_root(dataset: str) -> Path:
    """Where a data set lies by default."""
    return settings.DATA_DIR / FOLDERS.get(dataset, dataset)


def write_mini(root: Path) -> None:
    """Write the synthetic glyphs."""
    glyphs.write_dataset(root)


def files(root: Path, part: str) -> list[Path]:
    """All image files of a part by ``images.split_files``; for torchvision's CIFAR-100 the pickle of that part."""
    official = root / OFFICIAL / part
    if official.is_file():
        return [official]
    return [file for of_class in split_files(root, part).values() for file in of_class]


def has_part(root: Path, part: str) -> bool:
    """Whether a data set brings this part (train, test) as one of its own."""
    return (root / OFFICIAL / part).is_file() or bool(class_files(root / part))


def read(root: Path, part: str, image_size: int) -> Labelled:
    """The images of one part (train, test) of a folder of class folders, or of torchvision's CIFAR-100.

    Items are uint8 (N,3,H,W). Squares of one size up to ``image_size`` are kept as they are; else each image's short
    side becomes ``image_size`` and its centre is cut out.
    """
    if (root / OFFICIAL).is_dir():
        return _read_official(root, part)
    paths = files(root, part)
    classes, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return Labelled(_pixels(paths, image_size), torch.from_numpy(labels), tuple(classes.tolist()), _names(paths))


def from_files(paths: Sequence[Path], image_size: int) -> Labelled:
    """Image files of unknown class."""
    return Labelled(_pixels(paths, image_size), torch.zeros(len(paths), dtype=torch.int64), ("",), _names(paths))


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(f"{path.parent.name}/{path.name}" for path in paths)


def _pixels(paths: Sequence[Path], image_size: int) -> torch.Tensor:
    arrays = [read_image(path) for path in tqdm(paths, "reading images", leave=False, disable=None)]
    (height, width), *other_sizes = {array.shape[:2] for array in arrays}
    if other_sizes or height != width or height > image_size:
        arrays = [_square(array, image_size) for array in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _square(array: np.ndarray, size: int) -> np.ndarray:
    image = TF.resize(torch.from_numpy(array).permute(2, 0, 1), [size], antialias=True)
    return TF.center_crop(image, [size, size]).permute(1, 2, 0).numpy()


def _read_official(root: Path, part: str) -> Labelled:
    if part not in ("train", "test"):
        raise DataError(f"{root / OFFICIAL} has the parts train and test, not {part}")
    try:
        cifar = CIFAR100(root, train=part == "train")
    except RuntimeError as error:
        remedy = "remove that folder and run ./download.sh cifar100"
        raise DataError(f"{root / OFFICIAL} is incomplete or damaged ({error}); {remedy}") from error
    pixels = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
    names = tuple(f"{cifar.classes[label]}/{number:05d}" for number, label in enumerate(cifar.targets))
    return Labelled(pixels, torch.tensor(cifar.targets), tuple(cifar.classes), names)


# ------------------------------------------------------------------------------------------------ classes
def choose_classes(names: Sequence[str], wanted: Sequence[str], exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names meant by ``wanted`` (() = all) less those meant by ``exclude``.

    Each entry is a class, ``firstK`` (the first K by name) or ``diverse20`` (see DIVERSE).
    """
    excluded = set(_expand(names, exclude))
    chosen = tuple(name for name in (_expand(names, wanted) if wanted else names) if name not in excluded)
    if len(chosen) < 2:
        raise settings.InputError(f"classes {tuple(wanted)} without {tuple(exclude)} are {chosen}: two are needed")
    return chosen


def _expand(names: Sequence[str], entries: Sequence[str]) -> list[str]:
    expanded: list[str] = []
    for entry in map(str, entries):  # a class may be named by a number
        if entry == "diverse20":
            expanded += DIVERSE
        elif entry.startswith("first") and entry[5:].isdigit():
            count = int(entry[5:])
            if count > len(names):
                raise settings.InputError(f"{entry}: there are {len(names)} classes")
            expanded += sorted(names)[:count]
        else:
            expanded.append(entry)
    unknown = [name for name in expanded if name not in names]
    if unknown:
        raise settings.InputError(f"no class {', '.join(unknown)} here; choose from {', '.join(names)}")
    return list(dict.fromkeys(expanded))


def hold_out_classes(classes: Sequence[str], count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(seen, unseen) classes, ``count`` of them unseen, drawn by the seed."""
    if not 2 <= count <= len(classes) - 2:
        raise settings.InputError(f"unseen={count} of {len(classes)} classes: two at least on either side")
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
    unseen = {classes[index] for index in order[:count]}
    return tuple(c for c in classes if c not in unseen), tuple(c for c in classes if c in unseen)


# ------------------------------------------------------------------------------------------------- splits
def datasets(config: Config, root: Path | None = None) -> dict[str, Labelled]:
    """split -> images: train and val are carved from the part ``train``; test is a part of its own, if it is there.

    A val/ on disk is not used. With ``per_class`` of three numbers, test too is carved from ``train``. With ``unseen``,
    those classes are in no other split than ``unseen``, which holds all their images.
    """
    root = root or default_root(config.dataset)
    images = read_training_part(config, root)
    splits = {split: images.subset(indices) for split, indices in divide(config, images).items()}
    if "test" not in splits and has_part(root, "test"):
        test = read(root, "test", config.image_size)
        classes = [images.classes[label] for label in splits["train"].labels.unique()]
        splits["test"] = test.subset(test.of(classes))
    return splits


def read_training_part(config: Config, root: Path) -> Labelled:
    """The part ``train`` of a data set; DataError where class folders lie directly below ``root``.

    There every image belongs to whatever split is evaluated, and would be measured on what was trained on it.
    """
    if not has_part(root, "train"):
        remedy = "the mini set: python -m src sets data; CIFAR-100: ./download.sh cifar100"
        raise DataError(f"{root} holds no train/<class>/*.png: put there what is to be learnt from ({remedy})")
    return read(root, "train", config.image_size)


def divide(config: Config, images: Labelled) -> dict[str, torch.Tensor]:
    """split -> int64 indices of its images in the part ``train`` as it is on disk."""
    seen = choose_classes(images.classes, config.classes, config.exclude)
    splits = {}
    if config.unseen:
        seen, unseen = hold_out_classes(seen, config.unseen, config.seed)
        splits["unseen"] = images.of(unseen)
    parts = split(images, seen, config.per_class, config.seed)
    return dict(zip(("train", "val", "test"), parts, strict=False)) | splits


def split(images: Labelled, classes: Sequence[str], shares: Sequence[float], seed: int) -> list[torch.Tensor]:
    """Disjoint parts, as indices, with ``shares`` of each of the classes: numbers of images, or fractions up to 1."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[torch.Tensor]] = [[] for _ in shares]
    for name in classes:
        members = images.of([name])
        members = members[torch.randperm(len(members), generator=generator)]
        counts = _counts(len(members), shares)
        if sum(counts) > len(members) or min(counts) < 1:
            asked = " + ".join(map(str, counts))
            raise settings.InputError(f"class {name} has {len(members)} images, not {asked}: change per_class")
        for part, chosen in zip(parts, members.split([*counts, len(members) - sum(counts)]), strict=False):
            part.append(chosen)
    return [torch.cat(part) for part in parts]


def _counts(members: int, shares: Sequence[float]) -> list[int]:
    if sum(shares) > 1 + 1e-9:
        return [int(share) for share in shares]
    counts = [round(share * members) for share in shares]
    while sum(counts) > members:  # several were rounded up
        counts[counts.index(max(counts))] -= 1
    return counts


def distribution(config: Config, root: Path) -> dict[str, dict[str, int]]:
    """split -> number of images and of classes."""
    return {
        split: {"images": len(images), "classes": len(images.labels.unique())}
        for split, images in datasets(config, root).items()
    }


def is_divided(config: Config, root: Path, dataset: str) -> bool:
    """Whether a data set is the model's own, with a part ``train`` to carve splits from."""
    return dataset == config.dataset and has_part(root, "train")


def read_split(config: Config, root: Path, dataset: str, split: str) -> Labelled:
    """The images of a split of the model's own data set, or of any folder of class folders (``dataset``).

    Where that folder holds class folders directly, every image belongs to the split named. The config's choice of
    classes is of its own data set: of another, all count.
    """
    if is_divided(config, root, dataset):
        splits = datasets(config, root)
        if split not in splits:
            raise settings.InputError(f"{root} has no split {split}: expected one of {', '.join(splits)}")
        return splits[split]
    images = read(root, split, config.image_size)
    if dataset != config.dataset:
        return images
    return images.subset(images.of(choose_classes(images.classes, config.classes, config.exclude)))

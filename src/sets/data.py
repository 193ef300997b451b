"""Labelled images in memory, their splits, and sets drawn as index tensors: nine of one class, one of another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.datasets import CIFAR100
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from src import settings
from src.images import DataError, class_files, read_image, split_files

SIZE = 10  # images in a set
OFFICIAL = "cifar-100-python"  # torchvision's own folder
# One class of each of CIFAR-100's twenty superclasses (Krizhevsky, 2009): the first by name
DIVERSE = ("beaver", "aquarium_fish", "orchid", "bottle", "apple", "clock", "bed", "bee", "bear", "bridge", "cloud",
           "camel", "fox", "crab", "baby", "crocodile", "hamster", "maple_tree", "bicycle", "lawn_mower")  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Labelled images of one size.

    ``pixels`` uint8 (N,3,H,W); ``labels`` int64 (N,), indices into ``classes``, of which some may have no image
    here; ``names`` (N,), such as ``apple/012.png``.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: torch.Tensor) -> "Images":
        """Some of the images, by int64 index, with the same classes."""
        return Images(self.pixels[chosen], self.labels[chosen], self.classes, tuple(self.names[i] for i in chosen))

    def of(self, classes: Sequence[str]) -> torch.Tensor:
        """Which images show one of some classes: int64 indices, ascending."""
        missing = set(classes) - set(self.classes)
        if missing:
            raise settings.InputError(f"no class {', '.join(sorted(missing))}; there are {', '.join(self.classes)}")
        wanted = torch.tensor([name in classes for name in self.classes])
        return wanted[self.labels].nonzero()[:, 0]


# -------------------------------------------------------------------------------------- from the disk
def files(root: Path, part: str) -> list[Path]:
    """All image files of a part by ``images.split_files``; for torchvision's CIFAR-100 the pickle of that part."""
    official = root / OFFICIAL / part
    return [official] if official.is_file() else [file for own in split_files(root, part).values() for file in own]


def has_part(root: Path, part: str) -> bool:
    """Whether a data set brings this part (train, test) as one of its own."""
    return (root / OFFICIAL / part).is_file() or bool(class_files(root / part))


def read(root: Path, part: str, image_size: int) -> Images:
    """The images of one part (train, test) of a folder of class folders, or of torchvision's CIFAR-100.

    Squares of one size up to ``image_size`` are kept as they are; else each image's short side becomes
    ``image_size`` and its centre is cut out.
    """
    if (root / OFFICIAL).is_dir():
        if part not in ("train", "test"):
            raise DataError(f"{root / OFFICIAL} has the parts train and test, not {part}")
        return _official(root, part)
    found = files(root, part)
    classes = sorted({file.parent.name for file in found})
    number = {name: index for index, name in enumerate(classes)}
    labels = torch.tensor([number[file.parent.name] for file in found])
    return Images(_pixels(found, image_size), labels, tuple(classes), tuple(map(_name, found)))


def from_files(found: Sequence[Path], image_size: int) -> Images:
    """Image files of unknown class, as one set of images."""
    return Images(
        _pixels(found, image_size), torch.zeros(len(found), dtype=torch.int64), ("",), tuple(map(_name, found))
    )


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _pixels(found: Sequence[Path], image_size: int) -> torch.Tensor:
    arrays = [read_image(file) for file in tqdm(found, "reading images", leave=False, disable=None)]
    (height, width), *others = {array.shape[:2] for array in arrays}
    if others or height != width or height > image_size:
        arrays = [_square(array, image_size) for array in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _square(array: np.ndarray, size: int) -> np.ndarray:
    image = TF.resize(torch.from_numpy(array).permute(2, 0, 1), [size], antialias=True)
    return TF.center_crop(image, [size, size]).permute(1, 2, 0).numpy()


def _official(root: Path, part: str) -> Images:
    try:
        found = CIFAR100(root, train=part == "train")
    except RuntimeError as error:
        remedy = "remove that folder and run ./download.sh cifar100"
        raise DataError(f"{root / OFFICIAL} is incomplete or damaged ({error}); {remedy}") from error
    pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    names = tuple(f"{found.classes[label]}/{number:05d}" for number, label in enumerate(found.targets))
    return Images(pixels, torch.tensor(found.targets), tuple(found.classes), names)


# ------------------------------------------------------------------------------------ classes and splits
def choose_classes(names: Sequence[str], wanted: Sequence[str], exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names meant by ``wanted`` (() = all) less those meant by ``exclude``.

    Each entry is a class, ``firstK`` (the first K by name) or ``diverse20`` (see DIVERSE).
    """
    left_out = set(_expand(names, exclude))
    chosen = tuple(name for name in (_expand(names, wanted) if wanted else names) if name not in left_out)
    if len(chosen) < 2:
        raise settings.InputError(f"classes {tuple(wanted)} without {tuple(exclude)} are {chosen}: two are needed")
    return chosen


def _expand(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    found: list[str] = []
    for entry in map(str, wanted):  # a class may be named by a number
        if entry.startswith("first") and entry[5:].isdigit():
            if int(entry[5:]) > len(names):
                raise settings.InputError(f"{entry}: there are {len(names)} classes")
            found += sorted(names)[: int(entry[5:])]
        else:
            found += DIVERSE if entry == "diverse20" else [entry]
    unknown = [name for name in found if name not in names]
    if unknown:
        raise settings.InputError(f"no class {', '.join(unknown)} here; choose from {', '.join(names)}")
    return list(dict.fromkeys(found))


def split(images: Images, classes: Sequence[str], shares: Sequence[float], seed: int) -> list[torch.Tensor]:
    """Disjoint parts, as indices, with ``shares`` of each of the classes: numbers of images, or fractions up to 1."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[torch.Tensor]] = [[] for _ in shares]
    for name in classes:
        members = images.of([name])
        members = members[torch.randperm(len(members), generator=generator)]
        counts = _counts(len(members), shares)
        if sum(counts) > len(members) or min(counts) < 1:
            raise settings.InputError(f"class {name} has {len(members)} images, not {' + '.join(map(str, counts))}: "
                                      "change per_class")  # fmt: skip
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


def hold_out_classes(classes: Sequence[str], count: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(seen, unseen) classes, ``count`` of them unseen, drawn by the seed."""
    if not 2 <= count <= len(classes) - 2:
        raise settings.InputError(f"unseen={count} of {len(classes)} classes: two at least on either side")
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
    unseen = {classes[i] for i in order[:count]}
    return tuple(c for c in classes if c not in unseen), tuple(c for c in classes if c in unseen)


# ------------------------------------------------------------------------------------------------ sets
class Sets(NamedTuple):
    """``indices`` int64 (B,N) into the images; ``position`` int64 (B,) of the odd one, -1 where there is none."""

    indices: torch.Tensor
    position: torch.Tensor


class Sampler:
    """Draws sets from labelled images as whole index tensors, on the labels' device.

    The images of a set are distinct; its class and the odd one's are drawn uniformly from the classes.
    """

    def __init__(self, labels: torch.Tensor, classes: Sequence[str] = ()):
        found, counts = labels.unique(return_counts=True)
        if len(found) < 2:
            raise settings.InputError("sets need images of at least two classes")
        self.counts, self._fewest = counts, int(counts.min())
        self._poorest = classes[int(found[counts.argmin()])] if classes else f"class {int(found[counts.argmin()])}"
        starts = counts.cumsum(0) - counts
        columns = torch.arange(int(counts.max()), device=labels.device)
        at = (starts[:, None] + columns).clamp(max=len(labels) - 1)
        self._members = labels.argsort(stable=True)[at]  # (classes, most images); valid below counts

    def draw(self, count: int, generator: torch.Generator, size: int = SIZE, odd: bool = True) -> Sets:
        """``count`` sets of ``size`` images, one of them odd (or, with ``odd=False``, none)."""
        if self._fewest < size:
            raise settings.InputError(f"{self._poorest} has {self._fewest} images: too few for sets of {size}")
        device = self._members.device
        anchor = torch.randint(len(self.counts), (count,), generator=generator, device=device)
        indices = self._members[anchor[:, None], distinct(self.counts[anchor], size, generator)]
        if not odd:
            return Sets(indices, torch.full((count,), -1, device=device))
        others = torch.randint(1, len(self.counts), (count,), generator=generator, device=device)
        other = (anchor + others) % len(self.counts)
        which = torch.rand(count, generator=generator, device=device) * self.counts[other]
        position = torch.randint(size, (count,), generator=generator, device=device)
        odd_image = self._members[other, which.long().clamp(max=self.counts[other] - 1)]
        return Sets(indices.scatter(1, position[:, None], odd_image[:, None]), position)

    def pool(self, classes: int, each: int, generator: torch.Generator) -> torch.Tensor:
        """``each`` distinct images of each of ``classes`` distinct classes: int64 (classes * each,)."""
        if self._fewest < each or len(self.counts) < classes:
            raise settings.InputError(f"a pool of {classes} classes x {each} images does not fit {len(self.counts)} "
                                      f"classes, of which {self._poorest} has {self._fewest} images")  # fmt: skip
        device = self._members.device
        chosen = torch.randperm(len(self.counts), generator=generator, device=device)[:classes]
        return self._members[chosen[:, None], distinct(self.counts[chosen], each, generator)].flatten()


def distinct(below: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """``size`` different numbers 0 <= k < ``below`` (B,) a row, all such sets alike likely: int64 (B,size).

    Floyd's algorithm for all rows at once (Bentley and Floyd, Programming Pearls, 1987): its time does not grow with
    ``below``, as that of sorting random keys does. The order within a row is not random.
    """
    uniform = torch.rand(size, len(below), generator=generator, device=below.device)
    chosen = torch.full((size, len(below)), -1, device=below.device)
    for row, share in enumerate(uniform):
        last = below - size + row
        pick = (share * (last + 1)).long().minimum(last)  # float32 may round up
        chosen[row] = torch.where((chosen[:row] == pick).any(0), last, pick)
    return chosen.T


def fixed_sets(images: Images, count: int, seed: int, size: int = SIZE, odd: bool = True) -> Sets:
    """The same sets on every machine, for validation and test."""
    return Sampler(images.labels, images.classes).draw(count, torch.Generator().manual_seed(seed), size, odd)


def check(sets: Sets, labels: torch.Tensor) -> dict[str, float]:
    """What a set must be, else ValueError; returns ``sets``, ``images`` used and the ``largest_share`` of a position.

    Exactly one image of another class than the rest, at the position named; no image twice; positions uniform
    (within five standard deviations).
    """
    members, (count, size) = labels[sets.indices], sets.indices.shape
    ordered = sets.indices.sort(1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("an image occurs twice in a set")
    rest = members.mode(1).values[:, None]
    odd = members != rest
    if (odd.sum(1) != 1).any() or (odd.int().argmax(1) != sets.position).any():
        raise ValueError("a set does not hold exactly one odd image at the position named")
    shares = torch.bincount(sets.position, minlength=size) / count
    if float((shares - 1 / size).abs().max()) > 5 * (1 / size * (1 - 1 / size) / count) ** 0.5:
        raise ValueError(f"the odd image's position is not uniform: {shares.tolist()}")
    return {"sets": count, "images": len(sets.indices.unique()), "largest_share": float(shares.max())}

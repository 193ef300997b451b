"""Road images with label maps: StreetHazards (real or mini), CamVid, Cityscapes and anomaly sets as one kind of sample.

A sample is ``{"image": Image uint8 (3,H,W), "mask": Mask uint8 (1,H,W), "name": str}``. A mask holds the
data set's known classes, its ``anomaly`` label if it has one, and ``IGNORE``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from src import settings
from src.images import DataError, normalize, read_image

IGNORE = 255


@dataclass(frozen=True)
class LabelClass:
    """A known class: its official name and its colour (red, green, blue), 0 to 255."""

    name: str
    color: tuple[int, int, int]


class RoadDataset(Dataset):
    """Sorted image/label pairs of one split. Subclasses say where the files are and what labels mean."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    classes: ClassVar[tuple[LabelClass, ...]] = ()
    anomaly: ClassVar[int | None] = None
    optional: ClassVar[tuple[int, ...]] = ()  # normal labels that some protocols leave out
    remap: ClassVar[dict[int, int]]  # label on disk -> label in the sample

    def __init__(self, root: Path | str, split: str):
        if split not in self.splits:
            raise DataError(f"{type(self).__name__} has the splits {', '.join(self.splits)}, not {split!r}")
        self.root, self.split = Path(root), split
        images, labels = self.files()
        self.pairs = _paired(images, labels, f"{type(self).__name__} {split} under {self.root}")
        self.table = np.full(256, -1, dtype=np.int16)
        for source, target in self.remap.items():
            self.table[source] = target

    def files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Images and label maps of the split by a key that pairs them."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        mask = self.read_mask(index)
        if mask.shape != image.shape[:2]:
            raise DataError(f"{mask_path} is {mask.shape[::-1]} but {image_path} is {image.shape[1::-1]}")
        return {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            "mask": tv_tensors.Mask(torch.from_numpy(mask)[None]),
            "name": image_path.relative_to(self.root).as_posix(),
        }

    def read_mask(self, index: int) -> np.ndarray:
        """The label map alone, uint8 (H,W), remapped."""
        path = self.pairs[index][1]
        labels = read_image(path, None)
        if labels.ndim != 2 or labels.dtype != np.uint8:
            found = f"{labels.dtype} values on {labels.ndim} axes"
            raise DataError(f"{path} holds {found}; a label map holds one 8-bit value per pixel")
        mask = self.table[labels]
        if (mask < 0).any():
            known = f"{min(self.remap)}..{max(self.remap)}"
            raise DataError(
                f"{path} holds the label {labels[mask < 0][0]}: out of range, "
                f"{type(self).__name__} {self.split} uses {known}"
            )
        return mask.astype(np.uint8)


def _paired(images: dict, labels: dict, what: str) -> list[tuple[Path, Path]]:
    if not images and not labels:
        raise DataError(f"no images: {what}. `python -m src road data` makes mini data; download.sh fetches real data")
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        kind = "label map" if alone[0] in images else "image"
        raise DataError(f"{len(alone)} unpaired file(s): {what}; the first, {alone[0]}, has no {kind}")
    return [(images[key], labels[key]) for key in sorted(images, key=_natural)]


def _natural(key: str) -> tuple:
    """Sort keys that end in a number by it: 2 before 10."""
    folder, _, name = key.rpartition("/")
    return (folder, 0, int(name), "") if name.isdigit() else (folder, 1, 0, name)


def _by_stem(folder: Path, *suffixes: str, ending: str = "", only: bool = False) -> dict[str, Path]:
    """Files below a folder by their path in it, without suffix and ``ending``; with ``only`` those that have one."""
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and (not only or p.stem.endswith(ending)))
    found: dict[str, Path] = {}
    for path in sorted(paths):
        key = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if key in found:
            raise DataError(f"{found[key]} and {path.name} share one name: which is the image? Remove the other")
        found[key] = path
    return found


class StreetHazards(RoadDataset):
    """StreetHazards (Hendrycks et al., arXiv:1911.11132) in its official layout; labels 1..14 less one."""

    classes = tuple(
        LabelClass(*entry)
        for entry in (
            ("unlabeled", (0, 0, 0)),
            ("building", (70, 70, 70)),
            ("fence", (190, 153, 153)),
            ("other", (250, 170, 160)),
            ("pedestrian", (220, 20, 60)),
            ("pole", (153, 153, 153)),
            ("road line", (157, 234, 50)),
            ("road", (128, 64, 128)),
            ("sidewalk", (244, 35, 232)),
            ("vegetation", (107, 142, 35)),
            ("car", (0, 0, 142)),
            ("wall", (102, 102, 156)),
            ("traffic sign", (220, 220, 0)),
        )
    )
    anomaly = 13
    optional = (0, 3)
    anomaly_color = (60, 250, 240)
    folders: ClassVar[dict[str, tuple[str, str]]] = {
        "train": ("train", "training"),
        "val": ("train", "validation"),
        "test": ("test", "test"),
    }

    def __init__(self, root: Path | str, split: str):
        # Only the test split may hold anomalies: elsewhere label 14 is out of range, and an error.
        self.remap = {label: label - 1 for label in range(1, 15 if split == "test" else 14)}
        super().__init__(root, split)

    def files(self):
        part, name = self.folders[self.split]
        base = self.root / part
        return _by_stem(base / "images" / name, ".png"), _by_stem(base / "annotations" / name, ".png")


class CamVid(RoadDataset):
    """CamVid (Brostow et al. 2008) as prepared for SegNet: 11 classes, label 11 is void."""

    classes = tuple(
        LabelClass(*entry)
        for entry in (
            ("sky", (128, 128, 128)),
            ("building", (128, 0, 0)),
            ("pole", (192, 192, 128)),
            ("road", (128, 64, 128)),
            ("pavement", (60, 40, 222)),
            ("tree", (128, 128, 0)),
            ("sign symbol", (192, 128, 128)),
            ("fence", (64, 64, 128)),
            ("car", (64, 0, 128)),
            ("pedestrian", (64, 64, 0)),
            ("bicyclist", (0, 128, 192)),
        )
    )
    remap = {**{label: label for label in range(11)}, 11: IGNORE}

    def files(self):
        return (
            _by_stem(self.root / self.split, ".png", ".jpg"),
            _by_stem(self.root / f"{self.split}annot", ".png"),
        )


class CamVidCyclists(CamVid):
    """CamVid with cyclists as the anomaly: held out of train and val, to be found in the official test frames.

    Train and val are the official train frames without a cyclist (all official val frames hold some, so they serve
    nothing), cut into ``BLOCKS`` contiguous blocks of which every fifth is val: neighbouring frames look alike.
    """

    classes = CamVid.classes[:10]
    anomaly = 10
    BLOCKS = 20

    def __init__(self, root: Path | str, split: str):
        super().__init__(root, split)
        if split == "test":
            return
        free = [pair for index, pair in enumerate(self.pairs) if not (self.read_mask(index) == self.anomaly).any()]
        blocks = [index * self.BLOCKS // len(free) % 5 == 2 for index in range(len(free))]
        self.pairs = [pair for pair, held_out in zip(free, blocks, strict=True) if held_out == (split == "val")]

    def files(self):
        folder = "test" if self.split == "test" else "train"
        return _by_stem(self.root / folder, ".png", ".jpg"), _by_stem(self.root / f"{folder}annot", ".png")


class RoadAnomaly(RoadDataset):
    """RoadAnomaly (Lis et al. 2019): mask value 2 is anomalous; the rest is normal, of no stated class."""

    splits = ("test",)
    anomaly = 1
    remap = {0: 0, 1: 0, 2: 1}

    def files(self):
        return _by_stem(self.root / "images", ".png", ".jpg"), _by_stem(self.root / "masks", ".png")


class SegmentMeIfYouCan(RoadDataset):
    """Anomaly sets laid out as SegmentMeIfYouCan's (Chan et al., arXiv:2104.14812): RoadAnomaly21, RoadObstacle21,
    Fishyscapes Lost & Found and Static. Masks: 0 normal, 1 anomalous, 255 ignored.

    ``images`` also holds the frames whose masks the benchmark keeps to itself: they are left out, which is printed.
    """

    splits = ("test",)
    anomaly = 1
    remap = {0: 0, 1: 1, IGNORE: IGNORE}

    def files(self):
        images = _by_stem(self.root / "images", ".png", ".jpg", ".jpeg", ".webp")
        masks = _by_stem(self.root / "labels_masks", ".png", ending="_labels_semantic")
        hidden = images.keys() - masks.keys()
        if hidden and masks:
            print(f"{self.root}: {len(hidden)} of {len(images)} images have no mask and are left out")
        return {key: path for key, path in images.items() if key not in hidden}, masks


class Cityscapes(RoadDataset):
    """Cityscapes (Cordts et al. 2016) in its official layout: the 19 classes of its benchmark.

    Train and val are both cut from the official train folder, whose every tenth frame in order is val; test is the
    official val folder, the only other one with public labels. A root that holds only one of the folders will do.
    Label maps hold train ids, or (where there are none of these) the label ids of the annotation.
    """

    classes = tuple(
        LabelClass(*entry)
        for entry in (
            ("road", (128, 64, 128)),
            ("sidewalk", (244, 35, 232)),
            ("building", (70, 70, 70)),
            ("wall", (102, 102, 156)),
            ("fence", (190, 153, 153)),
            ("pole", (153, 153, 153)),
            ("traffic light", (250, 170, 30)),
            ("traffic sign", (220, 220, 0)),
            ("vegetation", (107, 142, 35)),
            ("terrain", (152, 251, 152)),
            ("sky", (70, 130, 180)),
            ("person", (220, 20, 60)),
            ("rider", (255, 0, 0)),
            ("car", (0, 0, 142)),
            ("truck", (0, 0, 70)),
            ("bus", (0, 60, 100)),
            ("train", (0, 80, 100)),
            ("motorcycle", (0, 0, 230)),
            ("bicycle", (119, 11, 32)),
        )
    )
    TRAIN_IDS = {**{label: label for label in range(19)}, IGNORE: IGNORE}
    LABEL_IDS = (
        7,
        8,
        11,
        12,
        13,
        17,
        19,
        20,
        21,
        22,
        23,
        24,
        25,
        26,
        27,
        28,
        31,
        32,
        33,
    )  # of the 19 classes, in order

    def __init__(self, root: Path | str, split: str):
        super().__init__(root, split)
        if split != "test":
            held_out = {index for index in range(len(self.pairs)) if index % 10 == 9}
            self.pairs = [pair for index, pair in enumerate(self.pairs) if (index in held_out) == (split == "val")]

    def files(self):
        folder = "val" if self.split == "test" else "train"
        images = _by_stem(self.root / "leftImg8bit" / folder, ".png", ".jpg", ".jpeg", ".webp", ending="_leftImg8bit")
        for kind in ("TrainIds", "Ids"):
            labels = _by_stem(self.root / "gtFine" / folder, ".png", ending=f"_gtFine_label{kind}", only=True)
            if labels:
                break
        self.remap = (
            self.TRAIN_IDS
            if kind == "TrainIds"
            else dict.fromkeys(range(256), IGNORE) | {label: index for index, label in enumerate(self.LABEL_IDS)}
        )
        return images, labels


DATASETS: dict[str, type[RoadDataset]] = {
    "mini": StreetHazards,
    "streethazards": StreetHazards,
    "camvid": CamVid,
    "camvid_cyclists": CamVidCyclists,
    "cityscapes": Cityscapes,
    "road_anomaly": RoadAnomaly,
    "smiyc": SegmentMeIfYouCan,
}


def dataset_class(name: str) -> type[RoadDataset]:
    """The data set of a name in ``DATASETS``; DataError for any other."""
    if name not in DATASETS:
        raise DataError(f"dataset {name!r} is unknown: choose from {', '.join(DATASETS)}")
    return DATASETS[name]


# --------------------------------------------------------------------------------------- transforms
def known_only(mask: torch.Tensor, dataset: RoadDataset) -> torch.Tensor:
    """The mask with its anomalies set to IGNORE: the target of closed-set segmentation."""
    return mask if dataset.anomaly is None else mask.masked_fill(mask == dataset.anomaly, IGNORE)


def preprocess(image: torch.Tensor, image_size: tuple[int, ...]) -> torch.Tensor:
    """What a model sees of an image at test time: resized to (H,W), or to a short side of (S,)."""
    return normalize(F.resize(image, list(image_size), antialias=True))


def _random_scale(image, mask, low: float, high: float):
    factor = torch.empty(()).uniform_(low, high).item()
    size = [round(side * factor) for side in image.shape[-2:]]
    return F.resize(image, size, antialias=True), F.resize(mask, size)


_FILL = {tv_tensors.Image: 124, tv_tensors.Mask: IGNORE, "others": 0}
_FLIP = v2.RandomHorizontalFlip(0.5)
_JITTER = v2.ColorJitter(0.3, 0.3, 0.3)
_ROTATION = v2.RandomRotation(5, interpolation=v2.InterpolationMode.BILINEAR, fill=_FILL)
_BLUR = v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))])
# name -> (scale range or none, transforms of image and mask together)
AUGMENTATIONS: dict[str, tuple[tuple[float, float] | None, list[Callable]]] = {
    "none": (None, []),
    "flip": (None, [_FLIP]),
    "flip_color": (None, [_FLIP, _JITTER]),
    "moderate": ((1.0, 1.3), [_FLIP, _JITTER, _ROTATION]),
    "heavy": ((0.5, 2.0), [_FLIP, _JITTER, _ROTATION, _BLUR]),
    "scale": ((0.5, 2.0), [_FLIP]),
    "scale_jitter": ((0.5, 1.5), [_FLIP, _JITTER]),
}


class Augment:
    """Training transform: resize, random scale and crop, flip, colour; then normalise.

    Gives ``{"image": float32 (3,h,w), "mask": int64 (h,w)}`` with every label outside the known classes,
    anomalies among them, set to IGNORE.
    """

    def __init__(self, name: str, num_classes: int, image_size: tuple[int, ...], crop_size: tuple[int, int] | None):
        if name not in AUGMENTATIONS:
            raise settings.InputError(f"augmentation={name!r}: expected one of {', '.join(AUGMENTATIONS)}")
        self.scale, self.transforms = AUGMENTATIONS[name]
        if self.scale and not crop_size:
            raise settings.InputError(f"augmentation={name} changes the size of images: set crop_size=(height,width)")
        self.num_classes, self.image_size = num_classes, list(image_size)
        self.crop = crop_size and v2.RandomCrop(crop_size, pad_if_needed=True, fill=_FILL)

    def __call__(self, sample: dict) -> dict[str, torch.Tensor]:
        image = F.resize(sample["image"], self.image_size, antialias=True)
        mask = F.resize(sample["mask"], self.image_size)
        if self.scale:
            image, mask = _random_scale(image, mask, *self.scale)
        if self.crop:
            image, mask = self.crop(image, mask)
        for transform in self.transforms:
            image, mask = transform(image, mask)
        mask = mask.as_subclass(torch.Tensor)[0].long()
        mask[mask >= self.num_classes] = IGNORE
        return {"image": normalize(image), "mask": mask}


class _Preprocessed(Dataset):
    def __init__(self, dataset: Dataset, image_size: tuple[int, ...]):
        self.dataset, self.image_size = dataset, image_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        mask = sample["mask"].as_subclass(torch.Tensor)[0].long()
        return {"image": preprocess(sample["image"], self.image_size), "mask": mask}


def evaluation_loader(dataset: Dataset, image_size: tuple[int, ...], batch_size: int, workers: int = 0) -> DataLoader:
    """Batches of preprocessed images and masks in the masks' own size, in order."""
    return DataLoader(_Preprocessed(dataset, image_size), batch_size, num_workers=workers)


# ---------------------------------------------------------------------------------- what is in there
def class_distribution(dataset: RoadDataset) -> dict[str, dict[str, float]]:
    """Pixels, share of all labelled and unlabelled pixels, and number of images, for each class.

    Counted over every label map at its full size. IGNORE pixels count in the total as ``ignored``.
    """
    names = [c.name for c in dataset.classes] or ["normal"]
    names += ["anomaly"] if dataset.anomaly is not None else []
    pixels, images = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for index in range(len(dataset)):
        counts = np.bincount(dataset.read_mask(index).ravel(), minlength=256)
        pixels += counts
        images += counts > 0
    rows = [*enumerate(names), *([(IGNORE, "ignored")] if pixels[IGNORE] else [])]
    return {
        name: {"pixels": int(pixels[i]), "share": float(pixels[i] / pixels.sum()), "images": int(images[i])}
        for i, name in rows
    }


def class_weights(dataset: RoadDataset) -> torch.Tensor:
    """Loss weights ~ 1/sqrt(pixel share of 0.001 or more), mean one: rare classes count more, and drown no other."""
    rows = list(class_distribution(dataset).values())[: len(dataset.classes)]
    shares = torch.tensor([row["share"] for row in rows]).clamp(min=1e-3)
    weights = shares.rsqrt()
    return weights / weights.mean()


def mask_to_rgb(mask: np.ndarray | torch.Tensor, dataset: RoadDataset | type[RoadDataset]) -> np.ndarray:
    """Label map (H,W) -> colours uint8 (H,W,3); IGNORE is white, so that no class can be mistaken for it."""
    palette = np.full((256, 3), 255, dtype=np.uint8)
    for index, entry in enumerate(dataset.classes):
        palette[index] = entry.color
    if dataset.anomaly is not None:
        palette[dataset.anomaly] = StreetHazards.anomaly_color
    return palette[np.asarray(mask).astype(np.int64)]


def paths(dataset: RoadDataset) -> Iterable[Path]:
    """Every file behind a split, for its fingerprint."""
    return (path for pair in dataset.pairs for path in pair)

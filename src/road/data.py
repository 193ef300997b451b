"""Road images with label maps: StreetHazards (real or mini), CamVid, Cityscapes and anomaly sets as one kind of sample.

A sample is ``{"image": Image uint8 (3,H,W), "mask": Mask uint8 (1,H,W), "name": str}``. A mask holds the
data set's known classes, its ``anomaly`` label if it has one, and ``IGNORE``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from src import settings
from src.images import DataError, by_name, list_images, note, read_image, read_labels
from src.road import anomaly_masks
from src.road.config import FOLDERS, Config
from src.synthetic import street_scenes

IGNORE = 255
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm")  # files that keep every value as it is
ANOMALY_COLOR = (60, 250, 240)


@dataclass(frozen=True)
class LabelClass:
    """A known class: its official name and its colour (red, green, blue), 0 to 255."""

    name: str
    color: tuple[int, int, int]


def _classes(colors: dict[str, tuple[int, int, int]]) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(name, color) for name, color in colors.items())


def _image_files(folder: Path, ending: str = "") -> dict[str, Path]:
    """Images below a folder by their path in it, without suffix and ``ending``."""
    return by_name(list_images(folder, nested=True), folder, ending)


def _label_files(folder: Path) -> dict[str, Path]:
    """Label maps below a folder by their path in it, without suffix."""
    return by_name(list_images(folder, LABEL_SUFFIXES, nested=True), folder)


class RoadDataset(Dataset):
    """Sorted image/label pairs of one split. Subclasses say where the files are and what labels mean."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    classes: ClassVar[tuple[LabelClass, ...]] = ()
    anomaly: ClassVar[int | None] = None
    optional: ClassVar[tuple[int, ...]] = ()  # normal labels that some protocols leave out
    remap: dict[int, int]  # label on disk -> label in the sample

    def __init__(self, root: Path | str, split: str):
        if split not in self.splits:
            raise DataError(f"{type(self).__name__} has the splits {', '.join(self.splits)}, not {split!r}")
        self.root, self.split = Path(root), split
        images, labels = self.files()
        self.pairs = _paired(images, labels, f"{type(self).__name__} {split} under {self.root}")

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
        labels = read_labels(path)
        table = np.full(256, -1, dtype=np.int16)
        table[list(self.remap)] = list(self.remap.values())
        mask = table[labels]
        if (mask < 0).any():
            raise DataError(
                f"{path} holds the label {labels[mask < 0][0]}: out of range, "
                f"{type(self).__name__} {self.split} uses {min(self.remap)}..{max(self.remap)}"
            )
        return mask.astype(np.uint8)


def _paired(images: dict, labels: dict, what: str) -> list[tuple[Path, Path]]:
    if not images and not labels:
        raise DataError(f"no images: {what}. `python -m src road data` makes mini data; download.sh fetches real data")
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        missing = "label map" if alone[0] in images else "image"
        raise DataError(f"{len(alone)} unpaired file(s): {what}; the first, {alone[0]}, has no {missing}")
    return [(images[key], labels[key]) for key in sorted(images, key=_by_number)]


def _by_number(key: str) -> tuple:
    """Sort keys that end in a number by it: 2 before 10."""
    folder, _, name = key.rpartition("/")
    return (folder, 0, int(name), "") if name.isdigit() else (folder, 1, 0, name)


# ---------------------------------------------------------------------------------- with known classes
class StreetHazards(RoadDataset):
    """StreetHazards (Hendrycks et al., arXiv:1911.11132) in its official layout; labels 1..14 less one."""

    classes = _classes(
        {
            "unlabeled": (0, 0, 0),
            "building": (70, 70, 70),
            "fence": (190, 153, 153),
            "other": (250, 170, 160),
            "pedestrian": (220, 20, 60),
            "pole": (153, 153, 153),
            "road line": (157, 234, 50),
            "road": (128, 64, 128),
            "sidewalk": (244, 35, 232),
            "vegetation": (107, 142, 35),
            "car": (0, 0, 142),
            "wall": (102, 102, 156),
            "traffic sign": (220, 220, 0),
        }
    )
    anomaly = 13
    optional = (0, 3)
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
        part, folder = self.folders[self.split]
        base = self.root / part
        return _image_files(base / "images" / folder), _label_files(base / "annotations" / folder)


class CamVid(RoadDataset):
    """CamVid (Brostow et al. 2008) as prepared for SegNet: 11 classes, label 11 is void."""

    classes = _classes(
        {
            "sky": (128, 128, 128),
            "building": (128, 0, 0),
            "pole": (192, 192, 128),
            "road": (128, 64, 128),
            "pavement": (60, 40, 222),
            "tree": (128, 128, 0),
            "sign symbol": (192, 128, 128),
            "fence": (64, 64, 128),
            "car": (64, 0, 128),
            "pedestrian": (64, 64, 0),
            "bicyclist": (0, 128, 192),
        }
    )
    remap = {**{label: label for label in range(11)}, 11: IGNORE}

    def files(self):
        return self._folder(self.split)

    def _folder(self, name: str):
        return _image_files(self.root / name), _label_files(self.root / f"{name}annot")


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
        is_val = [index * self.BLOCKS // len(free) % 5 == 2 for index in range(len(free))]
        self.pairs = [pair for pair, in_val in zip(free, is_val, strict=True) if in_val == (split == "val")]

    def files(self):
        return self._folder("test" if self.split == "test" else "train")


class Cityscapes(RoadDataset):
    """Cityscapes (Cordts et al. 2016) in its official layout: the 19 classes of its benchmark.

    Train and val are both cut from the official train folder, whose every tenth frame in order is val; test is the
    official val folder, the only other one with public labels. A root that holds only one of the folders will do.
    Label maps hold train ids, or (where there are none of these) the label ids of the annotation.
    """

    classes = _classes(
        {
            "road": (128, 64, 128),
            "sidewalk": (244, 35, 232),
            "building": (70, 70, 70),
            "wall": (102, 102, 156),
            "fence": (190, 153, 153),
            "pole": (153, 153, 153),
            "traffic light": (250, 170, 30),
            "traffic sign": (220, 220, 0),
            "vegetation": (107, 142, 35),
            "terrain": (152, 251, 152),
            "sky": (70, 130, 180),
            "person": (220, 20, 60),
            "rider": (255, 0, 0),
            "car": (0, 0, 142),
            "truck": (0, 0, 70),
            "bus": (0, 60, 100),
            "train": (0, 80, 100),
            "motorcycle": (0, 0, 230),
            "bicycle": (119, 11, 32),
        }
    )
    # of the classes, in order
    OFFICIAL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    REMAPS: ClassVar[dict[str, dict[int, int]]] = {  # by the ending of the files
        "_gtFine_labelTrainIds": {**{label: label for label in range(19)}, IGNORE: IGNORE},
        "_gtFine_labelIds": dict.fromkeys(range(256), IGNORE) | {label: i for i, label in enumerate(OFFICIAL_IDS)},
    }

    def __init__(self, root: Path | str, split: str):
        super().__init__(root, split)
        if split != "test":
            self.pairs = [pair for index, pair in enumerate(self.pairs) if (index % 10 == 9) == (split == "val")]

    def files(self):
        split = "val" if self.split == "test" else "train"
        folder = self.root / "gtFine" / split
        annotations = list_images(folder, (".png", ".json"), nested=True)  # the official folders hold polygons too
        labels = {ending: [path for path in annotations if path.stem.endswith(ending)] for ending in self.REMAPS}
        ending = next((ending for ending in labels if labels[ending]), "_gtFine_labelIds")
        self.remap = self.REMAPS[ending]
        return _image_files(self.root / "leftImg8bit" / split, "_leftImg8bit"), by_name(labels[ending], folder, ending)


# -------------------------------------------------------------------------------- with anomalies alone
class AnomalyDataset(RoadDataset):
    """Photographs with masks of what is anomalous in them; the rest is normal, of no stated class."""

    splits = ("test",)
    anomaly = 1
    usual_mark: ClassVar[int]  # the value of anomalies in the official masks

    def __init__(self, root: Path | str, split: str):
        super().__init__(root, split)
        self.remap = anomaly_masks.remap_of([path for _, path in self.pairs], self.usual_mark)


class RoadAnomaly(AnomalyDataset):
    """RoadAnomaly (Lis et al. 2019): 60 photographs, whose mask value 2 is anomalous."""

    usual_mark = 2

    def files(self):
        return _image_files(self.root / "images"), _label_files(self.root / "masks")


class SegmentMeIfYouCan(AnomalyDataset):
    """Anomaly sets laid out as SegmentMeIfYouCan's (Chan et al., arXiv:2104.14812): RoadAnomaly21, RoadObstacle21,
    Fishyscapes Lost & Found and Static. Masks: 0 normal, 1 anomalous, 255 ignored.

    ``images`` also holds the frames whose masks the benchmark keeps to itself: they are left out, which is printed.
    """

    usual_mark = 1

    def files(self):
        images, folder = _image_files(self.root / "images"), self.root / "labels_masks"
        paths = [path for path in list_images(folder, LABEL_SUFFIXES) if not path.stem.endswith("_semantic_color")]
        masks = by_name(paths, folder, "_labels_semantic")
        hidden = images.keys() - masks.keys()
        if hidden and masks:
            note(self.root, f"{len(hidden)} of {len(images)} images have no mask and are left out")
        return {key: path for key, path in images.items() if key not in hidden}, masks


KINDS: dict[str, type[RoadDataset]] = {
    "mini": StreetHazards,
    "streethazards": StreetHazards,
    "camvid": CamVid,
    "camvid_cyclists": CamVidCyclists,
    "cityscapes": Cityscapes,
    "road_anomaly": RoadAnomaly,
    "smiyc": SegmentMeIfYouCan,
}


# --------------------------------------------------------------------------------------------- by name
def dataset_class(name: str) -> type[RoadDataset]:
    """The data set of a name; DataError for an unknown one."""
    if name not in KINDS:
        raise DataError(f"dataset {name!r} is unknown: choose from {', '.join(KINDS)}")
    return KINDS[name]


def open_split(dataset: str, root: Path | None, split: str) -> RoadDataset:
    """A split of a data set, read from ``root`` (default: the data set's folder under DATA_DIR)."""
    return dataset_class(dataset)(root or settings.DATA_DIR / FOLDERS.get(dataset, dataset), split)


def datasets(
    config: Config, root: Path | None = None, splits: Sequence[str] = ("train", "val", "test")
) -> dict[str, RoadDataset]:
    """split -> its images, of the config's data set."""
    return {split: open_split(config.dataset, root, split) for split in splits}


def open_compatible(config: Config, dataset: str | None, root: Path | None, split: str) -> RoadDataset:
    """A split of the config's own data set, or of another one with the same classes or none stated."""
    name = dataset or config.dataset
    classes = dataset_class(name).classes
    if classes and classes != dataset_class(config.dataset).classes:
        raise settings.InputError(f"weights for the classes of {config.dataset} cannot be used on {name}")
    return open_split(name, root, split)


def write_mini(root: Path) -> None:
    """Write the generated StreetHazards that profile mini trains on."""
    street_scenes.write_dataset(root)


# ------------------------------------------------------------------------------------------ label maps
def paths(dataset: RoadDataset) -> Iterator[Path]:
    """Every file behind a split, for its fingerprint."""
    return (path for pair in dataset.pairs for path in pair)


def known_only(mask: torch.Tensor, dataset: RoadDataset) -> torch.Tensor:
    """The mask with its anomalies set to IGNORE: the target of closed-set segmentation."""
    return mask if dataset.anomaly is None else mask.masked_fill(mask == dataset.anomaly, IGNORE)


def distribution(config: Config, root: Path | None = None) -> dict[str, dict]:
    """split -> ``class_distribution``, of every split that the config's data set has."""
    splits = datasets(config, root, dataset_class(config.dataset).splits)
    return {split: class_distribution(dataset) for split, dataset in splits.items()}


def class_distribution(dataset: RoadDataset) -> dict[str, dict[str, float]]:
    """Pixels, share of all labelled and unlabelled pixels, and number of images, for each class.

    Counted over every label map at its full size. IGNORE pixels count in the total as ``ignored``.
    """
    names = [entry.name for entry in dataset.classes] or ["normal"]
    names += ["anomaly"] if dataset.anomaly is not None else []
    pixels, images = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for index in range(len(dataset)):
        counts = np.bincount(dataset.read_mask(index).ravel(), minlength=256)
        pixels += counts
        images += counts > 0
    labels = dict(enumerate(names)) | ({IGNORE: "ignored"} if pixels[IGNORE] else {})
    return {
        name: {
            "pixels": int(pixels[label]),
            "share": float(pixels[label] / pixels.sum()),
            "images": int(images[label]),
        }
        for label, name in labels.items()
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
    palette[: len(dataset.classes)] = [entry.color for entry in dataset.classes] or np.empty((0, 3))
    if dataset.anomaly is not None:
        palette[dataset.anomaly] = ANOMALY_COLOR
    return palette[np.asarray(mask).astype(np.int64)]

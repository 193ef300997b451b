"""Settings of the defects system, and of the teachers it distils."""

from dataclasses import dataclass
from typing import Self

from src.config import SystemConfig, TrainingConfig

REAL = ("magnetic_tile", "mvtec", "folder", "csv")  # the data sets that profile real trains on
FOLDERS = {"mini": "mini/defects"}
ADJUSTABLE = ("stride", "categories", "patch_sizes")  # the last two may choose among those trained
PATCH_SIZES = (17, 33, 65)
STRIDES = (1, 2, 4, 8)
METHODS = ("uninformed_students", "feature_student", "nearest_neighbours")
BACKBONES = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "squeezenet1_0")
DEPTHS = ("middle", "last")
PRETRAINED = ("imagenet", "none")
AUGMENTATIONS = ("paper", "flip_rotate")
COMPACTNESS = ("mean", "sum")
MINI_CATEGORIES = ("fabric", "tiles", "bolt")


@dataclass(frozen=True)
class TeacherConfig(TrainingConfig):
    """All that a teacher's weights depend on, so that a teacher can be shared and recognised.

    ``Config`` checks the values, under the names that they have there.
    """

    RENAMED = {("augmentation", "user"): "flip_rotate"}

    patch_size: int = 33
    descriptor: int = 128
    width: int = 128
    backbone: str = "resnet18"
    pretrained: str = "imagenet"
    depth: str = "middle"
    patch_pixels: int = 64
    images: str = "imagenet"
    image_size: tuple[int, int] = (128, 320)
    augmentation: str = "paper"
    patches_per_image: int = 1
    compactness: str = "mean"
    compactness_weight: float = 0.1
    backbone_epochs: int = 0
    domain: str = ""  # the training images that the backbone was fine-tuned on


@dataclass(frozen=True)
class Config(SystemConfig):
    """What the defects system can vary.

    The teacher shares the inherited settings in ``teacher_config`` with the students, but not the seed: its own stays
    ``settings.SEED``, so that runs of other seeds share it.
    """

    RENAMED = {("teacher_augmentation", "user"): "flip_rotate"}

    method: str = "uninformed_students"  # what gives the scores, one of METHODS
    memory: int = 10_000  # vectors of good parts that nearest neighbours are sought among
    categories: tuple[str, ...] = ()  # folders of an MVTec-style root, each with students of its own; () = all
    percent: tuple[int, ...] = ()  # train, val, test; () = the split that the data set comes with
    image_size: int = 256  # short side, pixels
    crop_size: int = 0  # side of random training crops, pixels; 0 = the whole image
    patch_sizes: tuple[int, ...] = (33,)
    students: int = 3
    descriptor: int = 128
    width: int = 128  # channels of the students' first layer; the paper's are 128
    stride: int = 4  # pixels between scored positions; 1 = every pixel
    backbone: str = "resnet18"
    pretrained: str = "imagenet"  # imagenet | none (random weights)
    backbone_depth: str = "middle"  # middle | last: where the backbone's features are taken
    patch_pixels: int = 64  # side to which patches are enlarged for the backbone
    teacher_images: str = "imagenet"  # folder below DATA_DIR, searched for images
    teacher_image_size: tuple[int, int] = (128, 320)  # range of the short side of images that patches are cut from
    teacher_augmentation: str = "paper"  # paper (flips, some grey) | flip_rotate
    teacher_width: int = 128
    teacher_epochs: int = 200
    teacher_batch_size: int = 64
    teacher_lr: float = 2e-4
    patches_per_image: int = 1
    compactness: str = "mean"  # mean | sum, over pairs of dimensions
    compactness_weight: float = 0.1
    backbone_epochs: int = 0  # of domain fine-tuning by rotation prediction; 0 = the backbone as it came

    def __post_init__(self):
        super().__post_init__()
        largest = max((size for size in self.patch_sizes if isinstance(size, int)), default=0)
        self.expect(
            method=(self.method in METHODS, f"one of {_listed(METHODS)}"),
            memory=(self.memory >= 1, "1 or more vectors"),
            categories=(
                all(isinstance(name, str) and name and "." not in name for name in self.categories),
                "names of folders without a dot, which names of weights cannot hold: rename the folder",
            ),
            percent=(
                not self.percent or _is_split(self.percent),
                "whole numbers for train,val,test that sum to 100, train above 0 and none below",
            ),
            patch_sizes=(
                bool(self.patch_sizes) and set(self.patch_sizes) <= set(PATCH_SIZES),
                f"one or more of {_listed(PATCH_SIZES)}",
            ),
            image_size=(self.image_size >= 1, "1 or more pixels"),
            crop_size=(self.crop_size == 0 or self.crop_size >= largest, f"0, or at least a patch ({largest} pixels)"),
            students=(self.students >= 1, "1 or more"),
            descriptor=(self.descriptor >= 2, "2 or more dimensions"),
            width=(self.width >= 1, "1 or more channels"),
            stride=(self.stride in STRIDES, f"one of {_listed(STRIDES)}"),
            backbone=(
                self.backbone in BACKBONES and (self.backbone != "squeezenet1_0" or self.method == METHODS[0]),
                f"one of {_listed(BACKBONES)}, the last with method={METHODS[0]} alone",
            ),
            pretrained=(self.pretrained in PRETRAINED, f"one of {_listed(PRETRAINED)}"),
            backbone_depth=(self.backbone_depth in DEPTHS, f"one of {_listed(DEPTHS)}"),
            patch_pixels=(self.patch_pixels >= 32, "32 or more"),
            teacher_image_size=(
                _is_range(self.teacher_image_size, largest),
                f"a range low,high in pixels, low no less than a patch ({largest})",
            ),
            teacher_augmentation=(self.teacher_augmentation in AUGMENTATIONS, f"one of {_listed(AUGMENTATIONS)}"),
            teacher_width=(self.teacher_width >= 1, "1 or more channels"),
            teacher_epochs=(self.teacher_epochs >= 1, "1 or more"),
            teacher_batch_size=(self.teacher_batch_size >= 1, "1 or more images"),
            teacher_lr=(0 <= self.teacher_lr < float("inf"), "a number from 0"),
            patches_per_image=(self.patches_per_image >= 1, "1 or more"),
            compactness=(self.compactness in COMPACTNESS, f"one of {_listed(COMPACTNESS)}"),
            compactness_weight=(0 <= self.compactness_weight < float("inf"), "a number from 0"),
            backbone_epochs=(self.backbone_epochs >= 0, "1 or more, or 0 for the backbone as it came"),
        )

    @classmethod
    def mini(cls) -> Self:
        """Synthetic parts, a teacher of textures: trained on two CPU cores in minutes, without any download."""
        return cls(
            categories=MINI_CATEGORIES,
            image_size=128,
            epochs=25,
            batch_size=8,
            lr=1e-3,
            weight_decay=1e-5,
            schedule="cosine",
            warmup=20,
            width=64,
            pretrained="none",
            teacher_images="mini/defects/teacher",
            teacher_width=64,
            teacher_epochs=50,
            teacher_batch_size=16,
            teacher_lr=1e-3,
            patches_per_image=32,
        )

    @classmethod
    def real(cls, dataset: str = "magnetic_tile") -> Self:
        """Real parts, at a size that two CPU cores can train."""
        return cls(
            dataset=dataset,
            method="nearest_neighbours",
            percent=() if dataset == "mvtec" else (70, 15, 15),
            crop_size=128,
            epochs=40,
            batch_size=4,
            lr=3e-4,
            weight_decay=1e-5,
            schedule="cosine",
            warmup=20,
            stride=8,
            backbone="mobilenet_v2",
            teacher_images="imagenet_sample",
            teacher_epochs=90,
            teacher_batch_size=32,
            teacher_lr=5e-4,
            patches_per_image=16,
        )

    @classmethod
    def full(cls) -> Self:
        """The course's recipe: d = 512 descriptors distilled from ResNet-18's output, no decoder."""
        return cls(
            dataset="mvtec",
            epochs=25,
            batch_size=1,
            lr=1e-4,
            weight_decay=1e-5,
            descriptor=512,
            stride=1,
            backbone_depth="last",
            teacher_image_size=(256, 256),
            teacher_augmentation="flip_rotate",
            teacher_epochs=200,
            teacher_batch_size=64,
            teacher_lr=2e-4,
        )

    def teacher_config(self, patch_size: int, domain: str = "") -> TeacherConfig:
        """The part of the config that the teacher of a patch size depends on."""
        return TeacherConfig(
            epochs=self.teacher_epochs,
            batch_size=self.teacher_batch_size,
            optimizer=self.optimizer,
            lr=self.teacher_lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            workers=self.workers,
            amp=self.amp,
            compile=self.compile,
            patch_size=patch_size,
            descriptor=self.descriptor,
            width=self.teacher_width,
            backbone=self.backbone,
            pretrained=self.pretrained,
            depth=self.backbone_depth,
            patch_pixels=self.patch_pixels,
            images=self.teacher_images,
            image_size=self.teacher_image_size,
            augmentation=self.teacher_augmentation,
            patches_per_image=self.patches_per_image,
            compactness=self.compactness,
            compactness_weight=self.compactness_weight,
            backbone_epochs=self.backbone_epochs,
            domain=domain,
        )


def _listed(values: tuple) -> str:
    return ", ".join(map(str, values))


def _is_split(percent: tuple) -> bool:
    are_counts = all(type(share) is int and share >= 0 for share in percent)
    return are_counts and len(percent) == 3 and sum(percent) == 100 and percent[0] > 0


def _is_range(sides: tuple, smallest: int) -> bool:
    is_pair = len(sides) == 2 and all(type(side) is int for side in sides)
    return is_pair and max(1, smallest) <= sides[0] <= sides[1]

"""Defects on parts of which only good ones were seen: Uninformed Students (Bergmann et al., arXiv:1911.02357).

The doors, alike in every room: ``Config``, ``datasets(config)``, ``build_model(config)``, ``train(config)``,
``evaluate(config, model)``; for the command line also ``make_data``, ``load``, ``predict`` and ``draw``.
"""

from dataclasses import dataclass
from typing import Self

from src import training
from src.defects.teacher import TeacherConfig

REAL = ("magnetic_tile", "mvtec", "folder", "csv")  # the data sets that profile real trains on


@dataclass(frozen=True)
class Config(training.FitConfig):
    """What the defects room can vary; the inherited settings are the students'."""

    dataset: str = "mini"
    categories: tuple[str, ...] = ()  # folders of an MVTec-style root, each with students of its own
    percent: tuple[int, ...] = ()  # train, val, test; () = the split that the data set comes with
    image_size: int = 256  # short side
    crop_size: int = 0  # side of random training crops; 0 = the whole image
    patch_sizes: tuple[int, ...] = (33,)
    students: int = 3
    descriptor: int = 128
    width: int = 128  # channels of the students' first layer; the paper's are 128
    stride: int = 4  # pixels between scored positions; 1 = every pixel
    backbone: str = "resnet18"
    pretrained: str = "imagenet"  # imagenet | none: the backbone's weights
    backbone_depth: str = "middle"  # middle | last
    patch_pixels: int = 64
    teacher_images: str = "imagenet"
    teacher_image_size: tuple[int, int] = (128, 320)
    teacher_augmentation: str = "paper"
    teacher_width: int = 128
    teacher_epochs: int = 200
    teacher_batch_size: int = 64
    teacher_lr: float = 2e-4
    patches_per_image: int = 1
    compactness: str = "mean"
    compactness_weight: float = 0.1

    @classmethod
    def real(cls, dataset: str = "magnetic_tile") -> Self:
        percent = () if dataset == "mvtec" else (70, 15, 15)
        return cls(dataset=dataset, percent=percent, crop_size=128, epochs=60, batch_size=4, lr=3e-4, weight_decay=1e-5,
                   schedule="cosine", warmup=20, backbone="squeezenet1_0", teacher_images="imagenet_sample",
                   teacher_epochs=90, teacher_batch_size=32, patches_per_image=16, teacher_lr=5e-4)  # fmt: skip

    def teacher(self, patch_size: int) -> TeacherConfig:
        """The part of the config that a teacher depends on."""
        return TeacherConfig(
            seed=self.seed, epochs=self.teacher_epochs, batch_size=self.teacher_batch_size, optimizer=self.optimizer,
            lr=self.teacher_lr, weight_decay=self.weight_decay, schedule=self.schedule, warmup=self.warmup,
            workers=self.workers, amp=self.amp, compile=self.compile, patch_size=patch_size,
            descriptor=self.descriptor, width=self.teacher_width, backbone=self.backbone, pretrained=self.pretrained,
            depth=self.backbone_depth, patch_pixels=self.patch_pixels, images=self.teacher_images, image_size=self.teacher_image_size,
            augmentation=self.teacher_augmentation, patches_per_image=self.patches_per_image,
            compactness=self.compactness, compactness_weight=self.compactness_weight,
        )  # fmt: skip

"""Training of the students: patch networks that learn the teacher's descriptors, from defect-free images alone."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from src import settings, training
from src.backbones import normalize
from src.defects.config import Config
from src.defects.data import DefectDataset, fingerprint
from src.defects.dense import pad
from src.defects.model import PatchNet, Students

_VALIDATION_CROP = 256  # at most: validation sees the middle of each image
_LEAST_STD = 1e-3  # of the largest: a dimension that hardly varies on good parts must not drown the others


class Pixels(Dataset):
    """The images of a data set alone, uint8 (3,h,w), resized to a short side of ``image_size`` pixels."""

    def __init__(self, dataset: DefectDataset, image_size: int):
        self.dataset, self.image_size = dataset, image_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> torch.Tensor:
        return resize(self.dataset[index]["image"], self.image_size)


def resize(image: torch.Tensor, image_size: int) -> torch.Tensor:
    """uint8 (3,H,W) -> uint8 (3,h,w) with a short side of ``image_size``."""
    return TF.resize(image.as_subclass(torch.Tensor), [image_size], antialias=True)


class Crop:
    """Training view: both flips, reflected border, a random crop. uint8 (3,h,w) -> float32 (3,c,c), normalised.

    The border is part of what students train on, because every pixel is scored.
    """

    def __init__(self, patch_size: int, crop_size: int):
        self.patch_size, self.crop_size = patch_size, crop_size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        for axis in (1, 2):
            image = image.flip(axis) if torch.rand(()) < 0.5 else image
        padded = pad(normalize(image)[None], self.patch_size)[0]
        if not self.crop_size:
            return padded
        y, x = (int(torch.randint(0, max(1, side - self.crop_size + 1), ())) for side in padded.shape[1:])
        return padded[:, y : y + self.crop_size, x : x + self.crop_size]


@torch.no_grad()
def teacher_statistics(teacher: PatchNet, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std (d,) of the teacher's descriptors over all images, on its own grid; float64 sums."""
    count, total, squares = 0, 0.0, 0.0
    teacher = teacher.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    for image in (pixels[index] for index in range(len(pixels))):
        padded = pad(normalize(image)[None], teacher.patch_size, teacher.stride)
        descriptors = teacher(training.to_device(padded))[0].flatten(1).double()
        count += descriptors.shape[1]
        total, squares = total + descriptors.sum(1), squares + descriptors.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), std.clamp(min=_LEAST_STD * float(std.max())).float()


def loss(model: nn.Module, views: torch.Tensor, *, teacher: PatchNet, students: Students) -> torch.Tensor:
    """Squared distance of the ``students`` to the normalised teacher, over views (B,3,c,c).

    Summed over dimensions, averaged over positions and students. ``model``: the students as training wraps them.
    The teacher runs in full precision: what is noise to its own descriptors is not once they are divided by
    the small spread that they have on one kind of part.
    """
    with torch.no_grad(), torch.autocast(settings.DEVICE.type, enabled=False):
        targets = students.normalize(teacher(views))
    return (model(views).float() - targets).square().sum(2).mean()


@torch.inference_mode()
def validate(students: Students, *, views: Sequence[torch.Tensor], teacher: PatchNet, config: Config) -> dict:
    """``regression_error`` of the students on defect-free validation views, per dimension (1: as the mean alone)."""
    with training.autocast(config):
        losses = [float(loss(students, view, teacher=teacher, students=students)) for view in views]
    return {"regression_error": sum(losses) / len(losses) / teacher.descriptor}


def fit(
    students: Students, teacher: PatchNet, train: DefectDataset, val: DefectDataset, config: Config, run_dir: Path
) -> list[dict]:
    """Train (or resume) the students of one category and patch size; returns the history.

    ``val`` must hold defect-free images only: they choose the epoch.
    """
    patch_size = teacher.patch_size
    pixels = Pixels(train, config.image_size)
    mean, std = teacher_statistics(teacher, pixels)
    students.mean.copy_(mean)
    students.std.copy_(std)
    views = [training.to_device(_middle(image)) for image in Pixels(val, config.image_size)]
    teacher = teacher.to(settings.DEVICE, memory_format=torch.channels_last).eval().requires_grad_(False)
    return training.fit(
        students,
        training.Batches(pixels, config, Crop(patch_size, config.crop_size)),
        partial(loss, teacher=teacher, students=students),
        partial(validate, views=views, teacher=teacher, config=config),
        config,
        run_dir=run_dir,
        monitor="regression_error",
        minimize=True,
        fingerprint=fingerprint(train.files() + val.files())["sha256"],
    )


def _middle(image: torch.Tensor) -> torch.Tensor:
    side = min(_VALIDATION_CROP, *image.shape[-2:])
    return normalize(TF.center_crop(image, [side, side]))[None]

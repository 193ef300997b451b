"""Patches that teachers learn from, cut from images of many kinds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from src.backbones import normalize
from src.defects.config import TeacherConfig
from src.images import DataError, list_images, read_image

GREY_SHARE = 0.1  # of the patches, so that the descriptor does not rest on colour alone
HELD_OUT = 10  # every tenth image validates


class Images(Dataset):
    """Image files as uint8 (3,H,W)."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(read_image(self.files[index])).permute(2, 0, 1)


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted; DataError if there are fewer than can be divided into train and val."""
    files = sorted(list_images(folder, nested=True))
    if len(files) < 2 * HELD_OUT:
        raise DataError(
            f"{folder} holds {len(files)} images to distil a teacher with; at least {2 * HELD_OUT} are needed: "
            "put photographs of any kind there"
        )
    return files


def train_and_val(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(training, validation) files: every tenth validates."""
    return [file for i, file in enumerate(files) if i % HELD_OUT], list(files[::HELD_OUT])


def cut_patches(image: torch.Tensor, config: TeacherConfig) -> torch.Tensor:
    """Patches from random places of one image: uint8 (3,H,W) -> uint8 (K,3,p,p).

    The image is resized so that a patch is a small part of it, at one of many scales (Bergmann et al., 4.1).
    """
    size = config.patch_size
    low, high = config.image_size
    image = TF.resize(image, [_draw(low, high + 1)], antialias=True)
    patches = []
    for _ in range(config.patches_per_image):
        y, x = (_draw(0, side - size + 1) for side in image.shape[1:])
        patches.append(image[:, y : y + size, x : x + size])
    return torch.stack(patches)


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high, ()))


class AugmentedPatches:
    """Patches of one image, augmented: uint8 (3,H,W) -> float32 (K,3,p,p), normalised."""

    def __init__(self, config: TeacherConfig):
        self.config = config

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        patches = cut_patches(image, self.config)
        for axis in (2, 3):
            flipped = torch.rand(len(patches)) < 0.5
            patches[flipped] = patches[flipped].flip(axis)
        if self.config.augmentation == "flip_rotate":
            angles = torch.empty(len(patches)).uniform_(-180, 180).tolist()
            patches = torch.stack([TF.rotate(patch, angle) for patch, angle in zip(patches, angles, strict=True)])
        else:
            grey = torch.rand(len(patches)) < GREY_SHARE
            patches[grey] = TF.rgb_to_grayscale(patches[grey], 3)
        return normalize(patches)

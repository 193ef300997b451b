"""Image files in and out: what every system needs of them, and no more."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from src import settings

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as every torchvision backbone expects


class DataError(settings.InputError):
    """Files that are missing, unpaired or damaged, or that hold what they must not."""


def class_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[Path]]:
    """class -> its (image) files, both sorted by name: the folders directly below ``folder`` that hold some."""
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = {own.name: sorted(file for file in own.iterdir() if file.suffix.lower() in suffixes) for own in below}
    return {name: files for name, files in found.items() if files}


def split_files(root: Path, split: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[Path]]:
    """``class_files`` of ``root/split``, or of ``root`` where it holds class folders directly; else DataError."""
    found = class_files(root / split, suffixes) or class_files(root, suffixes)
    if not found:
        remedy = "name the folder with --root DIR, or fetch what is public with ./download.sh"
        raise DataError(f"{root} holds neither {split}/<class>/*.png nor <class>/*.png: {remedy}")
    return found


def read_image(path: Path | str, mode: str | None = "RGB") -> np.ndarray:
    """An image file as an array: uint8 (H,W,3) for ``RGB``, (H,W) for ``L``, as stored for None.

    Raises DataError naming a file that is missing, damaged, or holds more than 8 bits where 8 are asked for.
    """
    try:
        with Image.open(path) as image:
            if mode and image.mode[0] in "IF":  # Pillow would clip these to white
                raise DataError(f"{path} holds more than 8 bits a pixel: convert it to 8 bits")
            return np.array(image.convert(mode) if mode else image)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image ({error}); fetch it again") from error


def normalize(image: torch.Tensor) -> torch.Tensor:
    """uint8, or floats in 0..1, (...,3,H,W) -> float32 in ImageNet's normalisation."""
    return F.normalize(F.to_dtype(image.as_subclass(torch.Tensor), torch.float32, scale=True), MEAN, STD)


def denormalize(image: torch.Tensor) -> torch.Tensor:
    """The inverse of ``normalize``: float32 (...,3,H,W) in 0..1, but for rounding."""
    return image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]

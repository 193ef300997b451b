"""Image files: the one lister and the one reader of all systems."""

import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from src import settings

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tga",
    ".jp2",
)
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db"}  # beside names that start with a dot
LARGEST = 64_000_000  # pixels of an image: four times those of a 16-megapixel camera
LONGEST_RATIO = 50  # of an image's sides: more is a strip, not a picture


class DataError(settings.InputError):
    """Files that are missing, unpaired or damaged, or that hold what they must not."""


@cache
def note(place: Path | str, message: str) -> None:
    """Say how files were taken on stderr, once for each place however often it is listed."""
    print(f"{place}: {message}", file=sys.stderr)


# --------------------------------------------------------------------------------------------- listing
def visible(folder: Path) -> list[Path]:
    """What lies directly in a folder, sorted by name, without hidden and system files; [] where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not is_system_file(path.name))


def is_system_file(name: str) -> bool:
    """Whether a file or folder was put there by a desktop or an editor (``.DS_Store``, ``._a.png``, ``Thumbs.db``)."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def list_images(folder: Path, suffixes: Sequence[str] = SUFFIXES, *, nested: bool = False) -> list[Path]:
    """The image files of a folder, with ``nested`` also those of the folders below it, sorted by path.

    Symbolic links are followed. Other visible files are left out, which is printed, so that no picture goes missing
    unseen.
    """
    images, others = [], []
    for path in visible(folder):
        if path.is_dir():
            images += list_images(path, suffixes, nested=True) if nested else []
        elif path.suffix.lower() in suffixes:
            images.append(path)
        else:
            others.append(path.name)
    if others:
        note(folder, f"left out {len(others)} file(s) of another kind, {others[0]} the first")
    return images


def by_name(paths: Sequence[Path], folder: Path, ending: str = "") -> dict[str, Path]:
    """Files by their path below ``folder`` without suffix and ``ending``, to pair them with others of that name.

    Names compare after Unicode normalisation, as one system stores an umlaut in two characters and another in one.
    Raises DataError for two files of one name.
    """
    named: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        name = unicodedata.normalize("NFC", name)
        if name in named:
            raise DataError(f"{named[name]} and {path.name} share one name: which is it? Remove the other")
        named[name] = path
    return named


def class_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, list[Path]]:
    """class -> its files, both sorted by name: the folders directly below ``folder`` that hold some."""
    listed = {path.name: list_images(path, suffixes) for path in visible(folder) if path.is_dir()}
    return {name: files for name, files in listed.items() if files}


def split_files(root: Path, split: str, suffixes: Sequence[str] = SUFFIXES) -> dict[str, list[Path]]:
    """``class_files`` of ``root/split``, or of ``root`` where it holds class folders directly; else DataError."""
    files = class_files(root / split, suffixes) or class_files(root, suffixes)
    if not files:
        remedy = "name the folder with --root DIR, or fetch what is public with ./download.sh"
        raise DataError(f"{root} holds neither {split}/<class>/*.png nor <class>/*.png: {remedy}")
    return files


# --------------------------------------------------------------------------------------------- reading
def read_image(path: Path | str, mode: str = "RGB") -> np.ndarray:
    """A photograph as its viewer shows it (EXIF orientation applied): uint8 (H,W,3) for ``RGB``, (H,W) for ``L``.

    Raises DataError naming a file that is missing, damaged, of extreme size, or holds more than 8 bits.
    """
    return _read(path, lambda image: np.array(ImageOps.exif_transpose(_eight_bits(image, path)).convert(mode)))


def read_labels(path: Path | str) -> np.ndarray:
    """A label map as it is stored, palette indices or grey values: uint8 (H,W); DataError for anything else."""
    labels = _read(path, np.array)
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.bool_):
        stored = f"{labels.dtype} values on {labels.ndim} axes"
        raise DataError(f"{path} holds {stored}; a label map holds one 8-bit value per pixel")
    return labels.astype(np.uint8)


def _read(path: Path | str, convert) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.verify()  # the checksums of a PNG, which reading its pixels passes over
        with Image.open(path) as image:
            _check_shape(image, path)
            return convert(image)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable image ({error}); fetch it again") from error


def _check_shape(image: Image.Image, path: Path | str) -> None:
    width, height = image.size
    if width * height > LARGEST or max(width, height) > LONGEST_RATIO * min(width, height):
        bounds = f"{LARGEST:,} pixels at most, sides within 1:{LONGEST_RATIO}"
        raise DataError(f"{path} has {width} x {height} pixels: cut or scale it to {bounds}")


def _eight_bits(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode[0] in "IF":  # Pillow would clip these to white
        raise DataError(f"{path} holds more than 8 bits a pixel: convert it to 8 bits")
    return image

"""Features of a frozen encoder: computed once per image, kept on disk, and checked when they are read back."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from src import checkpoints, settings, training
from src.sets.data import Images

SHARD = 4096  # images in one file of the cache: what an interruption can lose


def extract(encoder: nn.Module, images: Images, cache: Path | None = None, batch_size: int = 256) -> torch.Tensor:
    """Features float32 (N,F) on the CPU, row i of image i; (0,F) for no images.

    ``encoder`` maps uint8 (B,3,H,W) to float32 (B,F) and has the attributes ``features`` (F) and ``image_size``.
    It is moved to ``settings.DEVICE`` and left there in eval mode, as ``training.fit`` leaves a model.

    ``cache`` is a folder in which every ``cache_key`` has its own, with one file per ``SHARD`` images; an interrupted
    extraction goes on after its last whole file. A file that is not what was written is named on stderr and made
    anew. Features come back bit for bit. Several processes may share the folder: they write whole files only.

    Raises InputError for features that are not finite (naming the image) and a cache that cannot be used (naming the
    folder), ValueError for an encoder that gives another type or shape.
    """
    if batch_size < 1:
        raise settings.InputError(f"batch_size={batch_size}: expected at least 1")
    encoder.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    folder = Path(cache) / cache_key(encoder, images.pixels) if cache else None
    if folder:
        with _usable(folder):  # known before the work, not after it
            folder.mkdir(parents=True, exist_ok=True)
    result = torch.empty(len(images), encoder.features, dtype=torch.float32)
    with tqdm(total=len(images), desc="features", unit="image", leave=False, disable=None) as bar:
        for start in range(0, len(images), SHARD):
            rows = result[start : start + SHARD]
            path = folder / f"{start // SHARD:05d}.pth" if folder else None
            if path and _read(path, rows):
                bar.update(len(rows))
                continue
            _compute(encoder, images, start, rows, batch_size, bar)
            if path:
                with _usable(folder):  # a clone, as a view would be saved with all of the result
                    checkpoints.write({"features": rows.clone(), "sha256": _sha256(_place(path), rows)}, path)
    return result


def extract_mixed(encoder: nn.Module, images: Images, config: training.TrainingConfig, **options) -> torch.Tensor:
    """``extract``, with its options, in the precision of the config's training."""
    with training.autocast(config):
        return extract(encoder, images, **options)


def cache_key(encoder: nn.Module, pixels: torch.Tensor) -> str:
    """32 hex digits for what features depend on: pixels, weights, layers (their ``repr``), ``image_size``, precision.

    Code is no part of it: delete the cache after changing how an encoder computes. Nor is the device, but for the
    depthwise layers that an encoder has on a CPU.
    """
    mixed = torch.is_autocast_enabled(settings.DEVICE.type)
    digest = hashlib.sha256(f"{encoder!r}\0{encoder.image_size}\0{mixed}".encode())
    parts = [("pixels", part) for part in pixels.split(SHARD)]  # no copy is larger than a shard
    for name, tensor in [*encoder.state_dict().items(), *parts]:
        digest.update(_sha256(name, tensor).encode())
    return digest.hexdigest()[:32]


def _sha256(name: str, tensor: torch.Tensor) -> str:
    """Checksum of a tensor's name, type, shape and values; its device and memory format do not count."""
    digest = hashlib.sha256(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"  # part of a checksum, so that no file passes for another


@torch.inference_mode()
def _compute(encoder: nn.Module, images: Images, start: int, rows: torch.Tensor, batch_size: int, bar: tqdm) -> None:
    """Fill ``rows`` with the features of the images from ``start`` on."""
    for part in rows.split(batch_size):
        features = encoder(training.to_device(images.pixels[start : start + len(part)])).cpu()
        if (features.dtype, features.shape) != (part.dtype, part.shape):
            raise ValueError(f"{type(encoder).__name__} gave {features.dtype} {tuple(features.shape)} for {len(part)} "
                             f"images: expected {part.dtype} {tuple(part.shape)}")  # fmt: skip
        bad = (~features.isfinite()).any(dim=1).nonzero()
        if len(bad):
            index = start + int(bad[0])
            raise settings.InputError(f"the features of image {index} ({images.names[index]}) are not finite: check "
                                      "the encoder's weights")  # fmt: skip
        part.copy_(features)
        start += len(part)
        bar.update(len(part))


def _read(path: Path, rows: torch.Tensor) -> bool:
    """Fill ``rows`` from a file of the cache; False if there is none, or, said on stderr, not the one written."""
    with _usable(path.parent):
        if not path.exists():
            return False
        try:
            content = checkpoints.read(path)
        except checkpoints.CheckpointError:  # damaged: said below
            content = {}
    found = content.get("features")
    whole = isinstance(found, torch.Tensor) and found.shape == rows.shape
    if whole and content.get("sha256") == _sha256(_place(path), found):
        rows.copy_(found)
        return True
    tqdm.write(f"{path} is damaged or not of shape {tuple(rows.shape)}: making it anew", file=sys.stderr)
    return False


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Make a disk's failure an InputError that names the folder."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save hides some OSErrors behind a RuntimeError
        reason = (isinstance(error, RuntimeError) and error.__context__) or error
        raise settings.InputError(f"cannot use the feature cache {folder} ({reason}): free or name another") from error

"""Features of a frozen encoder: computed once per image, and kept on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from src import checkpoints, settings, training
from src.config import TrainingConfig
from src.labelled import Labelled

SHARD = 4096  # images in one file of the cache: what an interruption can lose


def extract(encoder: nn.Module, images: Labelled, cache: Path | None = None, batch_size: int = 256) -> torch.Tensor:
    """Features float32 (N,F) on the CPU, row i of image i; (0,F) for no images.

    ``encoder`` maps uint8 (B,3,H,W) to float32 (B,F) and has the attributes ``features`` (F) and ``image_size``.
    It is moved to ``settings.DEVICE`` and left there in eval mode, as ``training.fit`` leaves a model.

    ``cache`` is a folder in which every ``cache_key`` has its own, with one file per ``SHARD`` images: an interrupted
    extraction goes on after its last file, and one that cannot be read is written anew. Several processes may share it.

    Raises InputError naming the image whose features are not finite.
    """
    encoder.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    folder = Path(cache) / cache_key(encoder, images.items) if cache else None
    shards = [torch.empty(0, encoder.features)]
    for start in range(0, len(images), SHARD):
        rows = slice(start, start + SHARD)
        file = folder / f"{start // SHARD:05d}.pth" if folder else None
        shard = _read(file, (len(images.names[rows]), encoder.features)) if file else None
        if shard is None:
            shard = _compute(encoder, images.items[rows], images.names[rows], batch_size)
            if file:
                checkpoints.write({"features": shard}, file)
        shards.append(shard)
    return torch.cat(shards)


def extract_mixed(encoder: nn.Module, images: Labelled, config: TrainingConfig, **options) -> torch.Tensor:
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


def _read(file: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    """The features in a file of the cache; None if there is none, or it is damaged."""
    try:
        features = checkpoints.read(file).get("features")
    except checkpoints.CheckpointError:
        return None
    return features if isinstance(features, torch.Tensor) and features.shape == shape else None


@torch.no_grad()
def _compute(encoder: nn.Module, pixels: torch.Tensor, names: Sequence[str], batch_size: int) -> torch.Tensor:
    batches = tqdm(pixels.split(batch_size), "features", leave=False, disable=None)
    features = torch.cat([encoder(training.to_device(batch)).cpu() for batch in batches])
    is_finite = features.isfinite().all(1)
    if not is_finite.all():
        name = names[int(is_finite.int().argmin())]
        raise settings.InputError(f"the features of image {name} are not finite: check the encoder's weights")
    return features

"""Distillation of a teacher: a small patch network learns to predict a large classifier's features of a patch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from src import backbones, settings, training
from src.defects import domain
from src.defects.config import TeacherConfig
from src.defects.data import fingerprint
from src.defects.model import FeatureExtractor, PatchNet, Teacher, compactness, effective_rank
from src.defects.patches import AugmentedPatches, Images, image_files, train_and_val

_BATCH = 256  # patches at a time, outside training
_LEAST_STD = 1e-3  # of the largest: a feature that hardly varies here must not drown the others where it does
_VALIDATION_PATCHES = 16  # of an image, at least


def distill(
    config: TeacherConfig, run_dir: Path, weights: Path | None = None, images: Sequence[Path] = ()
) -> tuple[PatchNet, list[dict]]:
    """Train (or resume) the teacher's run in ``run_dir``; returns its patch network and the history.

    ``weights`` is a local state dict of the backbone, in place of torchvision's download; ``images`` are those that the
    config may have it fine-tuned on beforehand. The epoch is chosen by the distillation error on held-out patches.
    """
    if weights and config.pretrained == "none":
        raise settings.InputError(f"{weights} would not be used: set pretrained=imagenet")
    settings.seed_everything(config.seed)
    if config.pretrained == "imagenet":
        network, _ = backbones.pretrained(config.backbone, weights)
    else:
        network = torchvision.models.get_model(config.backbone, weights=None)
    backbone = FeatureExtractor(network, config.backbone, config.depth, config.patch_pixels)
    model = Teacher(PatchNet(config.patch_size, config.descriptor, config.width), backbone.channels)
    if config.backbone_epochs:
        domain.fine_tune(backbone, images, config, run_dir.with_name(f"{run_dir.name}_backbone"))
    files = image_files(settings.DATA_DIR / config.images)
    train, val = train_and_val(files)
    backbone = backbone.to(settings.DEVICE, memory_format=torch.channels_last)
    patches = validation_patches(val, config)
    features = _features(backbone, patches, config)
    mean, std = features.mean(0), features.std(0)
    std = std.clamp(min=_LEAST_STD * float(std.max()))
    history = training.fit(
        model,
        training.Batches(Images(train), config, AugmentedPatches(config)),
        partial(loss, backbone=backbone, mean=mean, std=std, config=config),
        partial(validate, patches=patches, targets=(features - mean) / std),
        config,
        run_dir=run_dir,
        monitor="distillation",
        minimize=True,
        fingerprint=fingerprint(files)["sha256"],
    )
    return model.net, history


def loss(
    model: nn.Module,
    batch: torch.Tensor,
    *,
    backbone: FeatureExtractor,
    mean: torch.Tensor,
    std: torch.Tensor,
    config: TeacherConfig,
) -> torch.Tensor:
    """Distillation MSE per feature + weighted compactness, of patches (B,K,3,p,p).

    The backbone's features are standardised by ``mean`` and ``std`` (C,), so that neither the choice of backbone nor a
    feature's scale changes what the compactness weight means.
    """
    patches = batch.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    target = (backbone(patches) - mean) / std
    descriptors, decoded = model(patches)
    redundancy = compactness(descriptors, config.compactness)
    return F.mse_loss(decoded.float(), target) + config.compactness_weight * redundancy


@torch.inference_mode()
def validate(model: Teacher, patches: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Distillation MSE (1 = no better than the mean feature), compactness and effective rank on fixed patches."""
    outputs = [model(part) for part in patches.split(_BATCH)]
    descriptors, decoded = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return {
        "distillation": float(F.mse_loss(decoded, targets)),
        "compactness": float(compactness(descriptors)),
        "effective_rank": effective_rank(descriptors.cpu()),
    }


def validation_patches(files: Sequence[Path], config: TeacherConfig) -> torch.Tensor:
    """Patches (N,3,p,p) of the held-out images on the device, the same at every call: at least 16 an image."""
    cut = AugmentedPatches(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        rounds = -(-_VALIDATION_PATCHES // config.patches_per_image)
        patches = [cut(image) for image in Images(files) for _ in range(rounds)]
    return torch.cat(patches).to(settings.DEVICE, memory_format=torch.channels_last)


def _features(backbone: FeatureExtractor, patches: torch.Tensor, config: TeacherConfig) -> torch.Tensor:
    with training.autocast(config):
        return torch.cat([backbone(part) for part in patches.split(_BATCH)])

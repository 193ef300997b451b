"""Domain fine-tuning by rotation prediction: the backbone is fine-tuned on the parts' images, which carry no labels.

It learns to predict by which of the four quarter turns a patch was rotated (Gidaris et al., ICLR 2018,
arXiv:1803.07728). That suits parts and textures that have an upright; of those that look alike every way round the
accuracy stays at chance, 0.25.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from src import settings, training
from src.backbones import normalize
from src.defects.config import TeacherConfig
from src.defects.data import fingerprint
from src.defects.model import FeatureExtractor
from src.defects.patches import HELD_OUT, Images, cut_patches, train_and_val
from src.images import DataError

TURNS = 4
LR = 2e-5  # of Adam: small, to adjust the backbone and not to replace what it has learned
IMAGES, PATCHES = 8, 16  # images in a batch and patches of each, however few images a data set holds


class RotatedPatches:
    """Patches of one image, each rotated at random: uint8 (3,H,W) -> float32 (K,3,p,p), normalised; turns int64 (K,).

    Not flipped, unlike the teacher's: flipped both ways, a patch is a patch rotated by half a circle.
    """

    def __init__(self, config: TeacherConfig):
        self.config = config

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = cut_patches(image, self.config)
        turns = torch.randint(TURNS, (len(patches),))
        rotated = [patch.rot90(int(k), (1, 2)) for patch, k in zip(patches, turns, strict=True)]
        return normalize(torch.stack(rotated)), turns


class RotationClassifier(nn.Module):
    """A trainable copy of a backbone and a linear layer: patches (N,3,p,p) -> logits (N,4) of their turns.

    The backbone's batch norms keep their statistics: those of a batch would depend on which few images are in it.
    Its features are standardised: some backbones' are so large that their first gradients would undo what it learned.
    """

    def __init__(self, backbone: FeatureExtractor):
        super().__init__()
        self.backbone = deepcopy(backbone).requires_grad_(True)
        self.head = nn.Sequential(nn.BatchNorm1d(backbone.channels, affine=False), nn.Linear(backbone.channels, TURNS))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone.features(patches))


def fine_tune(backbone: FeatureExtractor, images: Sequence[Path], config: TeacherConfig, run_dir: Path) -> list[dict]:
    """Fine-tune the backbone in place for ``config.backbone_epochs`` (or resume that); returns the history.

    ``images`` must be training images, free of defects; every tenth is held out to choose the epoch by. DataError if
    they are too few for that. The backbone stays frozen and in eval mode; the classifier's last layer is discarded.
    """
    if len(images) < 2 * HELD_OUT:
        raise DataError(
            f"{len(images)} training images to fine-tune the backbone on; at least {2 * HELD_OUT} are needed: "
            "add some, or leave it as it is with backbone_epochs=0"
        )
    settings.seed_everything(config.seed)
    config = replace(
        config,
        epochs=config.backbone_epochs,
        batch_size=IMAGES,
        patches_per_image=PATCHES,
        optimizer="adam",
        lr=LR,
        schedule="cosine",
        warmup=0,
    )
    model = RotationClassifier(backbone)
    train, val = train_and_val(images)
    patches = torch.cat([cut_patches(image, config) for image in Images(val)])
    history = training.fit(
        model,
        training.Batches(Images(train), config, RotatedPatches(config)),
        loss,
        partial(validate, patches=training.to_device(normalize(patches)), config=config),
        config,
        run_dir=run_dir,
        monitor="rotation_accuracy",
    )
    backbone.load_state_dict(model.backbone.state_dict())
    return history


def loss(model: nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of patches (B,K,3,p,p) and their turns (B,K)."""
    patches, turns = (part.flatten(0, 1) for part in batch)
    return F.cross_entropy(model(patches.contiguous(memory_format=torch.channels_last)), turns)


@torch.inference_mode()
def validate(model: nn.Module, patches: torch.Tensor, config: TeacherConfig) -> dict[str, float]:
    """``rotation_accuracy`` over patches (N,3,p,p), each in all four turns."""
    correct = 0
    for turn in range(TURNS):
        for part in patches.rot90(turn, (2, 3)).split(256):
            with training.autocast(config):
                correct += int((model(part).argmax(1) == turn).sum())
    return {"rotation_accuracy": correct / (TURNS * len(patches))}


def describe(dataset: str, images: Sequence[Path]) -> str:
    """The images that a backbone is fine-tuned on, so that other images, or another split, are recognised."""
    content = fingerprint(images)
    return f"{dataset}: {content['files']} images, sha256 {content['sha256'][:12]}"

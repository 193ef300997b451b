"""Distillation of a teacher: a small patch network learns to say what a large classifier says of a patch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from src import checkpoints, settings, training
from src.defects.model import BACKBONES, Backbone, PatchNet, Teacher, compactness, effective_rank
from src.images import SUFFIXES, DataError, normalize, read_image

GREY_SHARE = 0.1  # of the patches, so that the descriptor does not rest on colour alone
HELD_OUT = 10  # every tenth image validates


@dataclass(frozen=True)
class TeacherConfig(training.TrainingConfig):
    """All that a teacher's weights depend on, so that a teacher can be shared and recognised."""

    patch_size: int = 33
    descriptor: int = 128
    width: int = 128
    backbone: str = "resnet18"
    pretrained: str = "imagenet"  # imagenet | none (random weights)
    depth: str = "middle"  # middle | last: where the backbone's features are taken
    patch_pixels: int = 64  # side to which patches are enlarged for the backbone
    images: str = "imagenet"  # folder below DATA_DIR, searched for images
    image_size: tuple[int, int] = (128, 320)  # range of the short side of the images that patches are cut from
    augmentation: str = "paper"  # paper (flips, some grey) | user (flips, rotation)
    patches_per_image: int = 1
    compactness: str = "mean"  # mean | sum, over pairs of dimensions
    compactness_weight: float = 0.1
    backbone_epochs: int = 0  # of fine-tuning the backbone beforehand; 0 = as it came
    domain: str = ""  # which training images those are

    def __post_init__(self):
        super().__post_init__()
        choices = {
            "backbone": tuple(BACKBONES),
            "depth": ("middle", "last"),
            "pretrained": ("imagenet", "none"),
            "augmentation": ("paper", "flip_rotate"),
            "compactness": ("mean", "sum"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise settings.InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        if len(self.image_size) != 2 or not self.patch_size <= self.image_size[0] <= self.image_size[1]:
            raise settings.InputError(f"teacher_image_size={self.image_size}: expected a range (low,high), low no less "
                                      f"than a patch ({self.patch_size})")  # fmt: skip
        if self.backbone_epochs < 0:
            raise settings.InputError(f"backbone_epochs={self.backbone_epochs}: 0 leaves the backbone as it came")


# --------------------------------------------------------------------------------------------- data
class Images(Dataset):
    """Image files as uint8 (3,H,W)."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(read_image(self.files[index])).permute(2, 0, 1)


def cut_patches(image: torch.Tensor, config: TeacherConfig) -> torch.Tensor:
    """Patches from random places of one image: uint8 (3,H,W) -> uint8 (K,3,p,p).

    The image is resized so that a patch is a small part of it, at one of many scales (Bergmann et al., 4.1).
    """
    size = config.patch_size
    low, high = config.image_size
    image = TF.resize(image, [_draw(low, high + 1)], antialias=True)
    corners = [(_draw(0, image.shape[1] - size + 1), _draw(0, image.shape[2] - size + 1))
               for _ in range(config.patches_per_image)]  # fmt: skip
    return torch.stack([image[:, y : y + size, x : x + size] for y, x in corners])


class CutPatches:
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
            patches = torch.stack([TF.rotate(p, angle) for p, angle in zip(patches, angles, strict=True)])
        else:
            grey = torch.rand(len(patches)) < GREY_SHARE
            patches[grey] = TF.rgb_to_grayscale(patches[grey], 3)
        return normalize(patches)


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high, ()))


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, sorted; DataError if there are fewer than can be divided into train and val."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(files) < 2 * HELD_OUT:
        raise DataError(f"{folder} holds {len(files)} images to learn a teacher from; at least {2 * HELD_OUT} "
                             "are needed: put photographs of any kind there")  # fmt: skip
    return files


# ----------------------------------------------------------------------------------------- training
def distill(config: TeacherConfig, run_dir: Path, weights: Path | None = None,
            adapt: Callable[[Backbone], object] | None = None) -> tuple[PatchNet, list[dict]]:  # fmt: skip
    """Train (or resume) the teacher's run in ``run_dir``; returns its patch network and the history.

    ``weights`` is a local state dict of the backbone, in place of torchvision's download; ``adapt`` fine-tunes
    the backbone before it is asked anything. The epoch is chosen by the distillation error on held-out patches.
    """
    if weights and config.pretrained == "none":
        raise settings.InputError(f"{weights} would not be used: set pretrained=imagenet")
    settings.seed_everything(config.seed)
    published = torchvision.models.get_model_weights(config.backbone).DEFAULT
    state = checkpoints.pretrained(published, weights) if config.pretrained == "imagenet" else None
    backbone = Backbone(config.backbone, config.depth, config.patch_pixels, state, weights or published.url)
    model = Teacher(PatchNet(config.patch_size, config.descriptor, config.width), backbone.channels)
    if adapt:
        adapt(backbone)
    files = image_files(settings.DATA_DIR / config.images)
    cut = CutPatches(config)
    batches = training.Batches(Images([f for i, f in enumerate(files) if i % HELD_OUT]), config, cut)
    held_out = _fixed_patches(files[::HELD_OUT], config, cut)
    backbone = backbone.to(settings.DEVICE, memory_format=torch.channels_last)
    features = _features(backbone, held_out, config)
    statistics = features.mean(0), _spread(features)
    history = training.fit(
        model,
        batches,
        partial(loss, backbone=backbone, statistics=statistics, config=config),
        partial(validate, patches=held_out, targets=(features - statistics[0]) / statistics[1]),
        config,
        run_dir=run_dir,
        monitor="distillation",
        minimize=True,
    )
    return model.net, history


def loss(model: nn.Module, batch: torch.Tensor, *, backbone: Backbone, statistics: tuple, config: TeacherConfig):
    """Distillation MSE per feature + weighted compactness, of patches (B,K,3,p,p).

    The backbone's features are standardised by ``statistics``, so that neither the choice of backbone nor a
    feature's scale changes what the compactness weight means.
    """
    patches = batch.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    target = (backbone(patches) - statistics[0]) / statistics[1]
    descriptors, decoded = model(patches)
    redundancy = compactness(descriptors, config.compactness)
    return F.mse_loss(decoded.float(), target) + config.compactness_weight * redundancy


@torch.inference_mode()
def validate(model: Teacher, patches: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Distillation MSE (1 = no better than the mean feature), compactness and effective rank on fixed patches."""
    outputs = [model(part) for part in patches.split(256)]
    descriptors, decoded = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    return {
        "distillation": float(F.mse_loss(decoded, targets)),
        "compactness": float(compactness(descriptors)),
        "effective_rank": effective_rank(descriptors.cpu()),
    }


def _fixed_patches(files: Sequence[Path], config: TeacherConfig, cut: CutPatches) -> torch.Tensor:
    """Patches (N,3,p,p) of the held-out images, the same at every call: at least 16 an image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        rounds = -(-16 // config.patches_per_image)
        patches = [cut(image) for image in Images(files) for _ in range(rounds)]
    return torch.cat(patches).to(settings.DEVICE, memory_format=torch.channels_last)


def _spread(features: torch.Tensor) -> torch.Tensor:
    """Std of each feature; one that hardly varies here must not drown the others where it does."""
    std = features.std(0)
    return std.clamp(min=1e-3 * float(std.max()))


def _features(backbone: Backbone, patches: torch.Tensor, config: TeacherConfig) -> torch.Tensor:
    with training.autocast(config):
        return torch.cat([backbone(part) for part in patches.split(256)])

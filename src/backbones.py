"""ImageNet backbones of all systems: their feature layers, channels, weights and normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.transforms.v2 import functional as F

from src import checkpoints, settings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as every torchvision backbone expects


@dataclass(frozen=True)
class Backbone:
    """A torchvision classifier: its modules from shallow to deep, by the names that torchvision gives them.

    ``layers``: name -> channels of its output; ``channels``: of the features that the class layer sees; ``stages``: the
    last layer of each resolution, at 1/4, 1/8, 1/16 and 1/32 of the image's; ``middle``: the layer whose features
    describe texture and parts; ``local``: layers that together describe a place in an image, the first at 1/8.
    """

    layers: dict[str, int]
    channels: int
    stages: tuple[str, ...] = ()
    middle: str = "layer3"
    local: tuple[str, ...] = ("layer2", "layer3")


_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


BACKBONES = {
    "resnet18": Backbone({"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}, 512, _RESNET_STAGES),
    "resnet34": Backbone({"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}, 512, _RESNET_STAGES),
    "resnet50": Backbone({"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}, 2048, _RESNET_STAGES),
    "mobilenet_v2": Backbone(
        {
            "features.3": 24,
            "features.6": 32,
            "features.10": 64,
            "features.13": 96,
            "features.17": 320,
            "features.18": 1280,
        },
        1280,
        ("features.3", "features.6", "features.13", "features.17"),
        middle="features.13",
        local=("features.6", "features.10", "features.13"),
    ),
    "squeezenet1_0": Backbone(
        {"features.5": 256, "features.9": 384, "features.12": 512}, 512, middle="features.9", local=()
    ),
}


def check(name: str, allowed: Sequence[str] = tuple(BACKBONES)) -> None:
    """InputError for a backbone that is not among those allowed."""
    if name not in allowed:
        raise settings.InputError(f"backbone={name!r}: expected one of {', '.join(allowed)}")


def pretrained(name: str, file: Path | str | None) -> tuple[nn.Module, str]:
    """The classifier with ImageNet's weights, and where they come from: ``file``, or torchvision's download.

    CheckpointError for a file that does not fit, and where nothing can be downloaded.
    """
    check(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    network = torchvision.models.get_model(name, weights=None)
    checkpoints.load_weights(network, checkpoints.pretrained(weights, file), f"{file or weights}, as {name},")
    return network, str(file or weights)


def normalize(image: torch.Tensor) -> torch.Tensor:
    """uint8, or floats in 0..1, (...,3,H,W) -> float32 in ImageNet's normalisation."""
    return F.normalize(F.to_dtype(image.as_subclass(torch.Tensor), torch.float32, scale=True), MEAN, STD)


def denormalize(image: torch.Tensor) -> torch.Tensor:
    """The inverse of ``normalize``: float32 (...,3,H,W) in 0..1, but for rounding."""
    return image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]

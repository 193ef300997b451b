"""Encoders that see images one by one, heads that see the features of a set at once, and non-learned baselines.

Every head maps features (B,N,F) of N images to logits (B,N), higher = more likely the odd one. But for ``FlatMLP``,
none knows the order of a set: permuting the images permutes the logits (Zaheer et al., arXiv:1703.06114).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from src import backbones, settings
from src.backbones import MEAN, STD
from src.sets.config import Config


# ---------------------------------------------------------------------------------------------- encoder
class ConvNet(nn.Sequential):
    """A small residual network for 32 x 32 pixels: (B,3,H,W) -> (B,256,1,1)."""

    channels = 256

    def __init__(self):
        super().__init__(
            _block(3, 32),
            _block(32, 64),
            nn.MaxPool2d(2),
            Residual(64),
            _block(64, 128),
            nn.MaxPool2d(2),
            Residual(128),
            _block(128, self.channels),
            nn.AdaptiveMaxPool2d(1),
        )


class Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolutions = nn.Sequential(_block(channels, channels), _block(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.convolutions(x)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Encoder(nn.Module):
    """Images uint8 (N,3,H,W) -> features float32 (N,F): a torchvision classifier without its class layer, or ConvNet.

    Images are resized to ``image_size`` pixels a side and given ImageNet's normalisation here, so that no caller
    can forget it. Features are the mean over an image and its mirror image, unless it is ``augmented``.
    """

    def __init__(self, name: str, image_size: int):
        super().__init__()
        self.name, self.image_size = name, image_size
        if name == "convnet":
            self.features, self.network = ConvNet.channels, ConvNet()
        else:
            backbones.check(name)
            self.features = backbones.BACKBONES[name].channels
            self.network = _without_class_layer(torchvision.models.get_model(name, weights=None))
        if settings.DEVICE.type == "cpu":
            for layer in self.network.modules():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    layer.__class__ = _Depthwise
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    def load_pretrained(self, file: Path | None) -> None:
        """ImageNet weights: those in ``file`` (torchvision's names), or torchvision's own."""
        if self.name == "convnet":
            raise settings.InputError("backbone=convnet has no ImageNet weights: set pretrained=none")
        classifier, _ = backbones.pretrained(self.name, file)
        self.network.load_state_dict(_without_class_layer(classifier).state_dict())

    def forward(self, pixels: torch.Tensor, augmented: bool = False) -> torch.Tensor:
        size = (self.image_size, self.image_size)
        if augmented:
            return self._describe(augment(pixels.float(), size))
        images = pixels.float()
        if pixels.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        return (self._describe(images) + self._describe(images.flip(3))) / 2

    def _describe(self, images: torch.Tensor) -> torch.Tensor:
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.network(images).float().mean((2, 3))


class _Depthwise(nn.Conv2d):
    """A depthwise convolution in full precision: a CPU's bf16 gradient of one takes up to sixteen times as long."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


def _without_class_layer(network: nn.Module) -> nn.Module:
    if hasattr(network, "features"):
        return network.features
    return nn.Sequential(*list(network.children())[:-2])  # a ResNet, less its pooling and class layer


def augment(images: torch.Tensor, size: tuple[int, int], scale: float = 0.25, shift: float = 0.125) -> torch.Tensor:
    """Float images (N,3,H,W), each mirrored or not, cut out at another scale and place, and resized to ``size``.

    A cut-out's side is 1 - ``scale`` to 1 of the image's; its centre moves by up to ``shift`` of it; what lies
    outside is the border's mirror image. Draws from torch's generator.
    """
    count, device = len(images), images.device
    zoom = 1 - scale * torch.rand(count, device=device)
    mirrored = 1 - 2 * torch.randint(2, (count,), device=device)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * mirrored, zoom
    theta[:, :, 2] = 2 * shift * (2 * torch.rand(count, 2, device=device) - 1)
    grid = F.affine_grid(theta, [count, 3, *size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


# ------------------------------------------------------------------------------------------------ heads
class SetAttention(nn.Module):
    """One block of multi-head attention over the set, and one MLP for every position."""

    def __init__(self, features: int, width: int, heads: int = 4, dropout: float = 0.1):
        super().__init__()
        self.project = nn.Identity() if features == width else nn.Linear(features, width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width // 2, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.project(features)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.score(self.norm(x))[..., 0]

    def attention_maps(self, features: torch.Tensor) -> torch.Tensor:
        """Attention of each image to each: (1,B,N,N), rows sum to 1, averaged over heads."""
        x = self.project(features)
        return self.attention(x, x, x)[1][None]


class SetTransformer(nn.Module):
    """Normalised features, a projection, encoder layers without mask or positions, one score each."""

    def __init__(self, features: int, width: int = 256, layers: int = 4, heads: int = 4, dropout: float = 0.1):
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(features), nn.Dropout(dropout), nn.Linear(features, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.project(features)
        for layer in self.layers:
            x = layer(x)
        return self.score(x)[..., 0]

    def attention_maps(self, features: torch.Tensor) -> torch.Tensor:
        """Attention of each image to each, by layer: (layers,B,N,N), rows sum to 1, averaged over heads."""
        x, maps = self.project(features), []
        for layer in self.layers:
            normed = layer.norm1(x)
            maps.append(layer.self_attn(normed, normed, normed)[1])
            x = layer(x)
        return torch.stack(maps)


class ClassPosterior(nn.Module):
    """Bayes' rule over the classes that a linear layer gives each image.

    With posteriors p_j(c), all classes equally likely beforehand, image i is the odd one of a set of class c with
    likelihood (1 - p_i(c)) prod_{j != i} p_j(c), up to a factor; its logit is the log of the sum over c. Nine images
    of one class say which it is, even where each alone would not.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.classifier = nn.Linear(features, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        log_p = self.classifier(features).float().log_softmax(2)
        others = log_p.sum(1, keepdim=True) - log_p
        return torch.logsumexp(others + torch.log1p(-log_p.exp().clamp(max=1 - 1e-6)), 2)


class FlatMLP(nn.Module):
    """The baseline that must learn every order: all features of a set side by side, one set size alone."""

    def __init__(self, features: int, size: int, width: int, dropout: float = 0.1):
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(
            nn.Linear(size * features, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, size),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features.flatten(1))


# ------------------------------------------------------------------------------------------- whole model
class SetModel(nn.Module):
    """Encoder, head, and the class layer that training end to end may lean on (``classes`` 0: none).

    ``ClassPosterior`` brings that layer itself.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, classes: int = 0):
        super().__init__()
        self.encoder, self.head = encoder, head
        needs_layer = classes and not isinstance(head, ClassPosterior)
        self.classifier = nn.Linear(encoder.features, classes) if needs_layer else None

    def class_layer(self) -> nn.Linear | None:
        """Features -> class logits, if the model has such a layer."""
        return getattr(self.head, "classifier", self.classifier)

    def forward(self, pixels: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Training view: images (P,3,H,W) augmented, sets (B,N) of them -> logits (B,N), class logits (P,classes).

        Each image is encoded once, however many sets it is in.
        """
        features, layer = self.encoder(pixels, augmented=True), self.class_layer()
        return self.head(features[indices]), layer(features) if layer else None


def build_model(config: Config, extras: Mapping[str, Any] | None = None) -> SetModel:
    """Encoder and head, randomly initialised from the config's seed; the class layer is for ``extras["classes"]``."""
    settings.seed_everything(config.seed)
    classes = len((extras or {}).get("classes", ()))
    encoder = Encoder(config.backbone, config.image_size)
    head = build_head(config, encoder.features, classes)
    return SetModel(encoder, head, classes if config.class_weight else 0)


def build_head(config: Config, features: int, classes: int) -> nn.Module:
    """The config's head for features of that many channels; ``classes`` for the one that needs them."""
    if config.head == "posterior":
        return ClassPosterior(features, classes)
    if config.head == "mlp":
        return FlatMLP(features, config.set_size, config.width, config.dropout)
    if config.head == "attention":
        return SetAttention(features, config.width, config.heads, config.dropout)
    return SetTransformer(features, config.width, config.layers, config.heads, config.dropout)


# ---------------------------------------------------------------------------------- non-learned baselines
def distance_to_mean(features: torch.Tensor) -> torch.Tensor:
    """Euclidean distance to the mean of the set: features (B,N,F) -> scores (B,N)."""
    return (features - features.mean(1, keepdim=True)).norm(dim=2)


def leave_one_out_cosine(features: torch.Tensor) -> torch.Tensor:
    """1 - mean cosine similarity to the others of the set: features (B,N,F) -> scores (B,N)."""
    unit = F.normalize(features, dim=2)
    to_all = (unit @ unit.sum(1)[..., None])[..., 0]
    return 1 - (to_all - 1) / (features.shape[1] - 1)


def random_scores(features: torch.Tensor) -> torch.Tensor:
    """Scores (B,N) that know nothing of the features (B,N,F); the same at each call."""
    generator = torch.Generator(features.device).manual_seed(0)
    return torch.rand(features.shape[:2], generator=generator, device=features.device)


BASELINES = {
    "distance_to_mean": distance_to_mean,
    "leave_one_out_cosine": leave_one_out_cosine,
    "random": random_scores,
}

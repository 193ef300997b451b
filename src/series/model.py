"""Networks that predict a series' behaviour from its plot: from the picture, or from the envelope of its line."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from src import backbones, settings
from src.series.config import ENVELOPE, Config
from src.series.data import class_names

RESNET50_PARAMETERS = 24_692_297  # of the course's network, head included
FLIPPED_AXES = {"horizontal": -1, "vertical": -2}  # of pictures


def build_model(config: Config, extras: Mapping[str, Any] = {}) -> "Classifier":
    """An ensemble of ``extras["members"]`` networks (default 1), randomly initialised from the config's seed."""
    settings.seed_everything(config.seed)
    flips = config.flips if config.tta else ()
    return Classifier(partial(build_net, config), extras.get("members", 1), flips).to(settings.DEVICE)


def build_net(config: Config) -> nn.Module:
    """A randomly initialised network, of envelopes or of pictures as the backbone says."""
    backbones.check(config.backbone, (ENVELOPE, *backbones.BACKBONES))
    classes = len(class_names(config))
    if config.backbone == ENVELOPE:
        return EnvelopeNet(config.width, classes, config.dropout)
    return PictureNet(PictureTrunk(config.backbone), classes, config.dropout)


class Head(nn.Sequential):
    """The course's head: features (B,F) -> logits (B,classes), by way of 512 and 256."""

    def __init__(self, features: int, classes: int, dropout: Sequence[float]):
        super().__init__(
            nn.Dropout(dropout[0]),
            nn.Linear(features, 512),
            nn.ReLU(),
            nn.BatchNorm1d(512),
            nn.Dropout(dropout[1]),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.BatchNorm1d(256),
            nn.Dropout(dropout[2]),
            nn.Linear(256, classes),
        )


# ------------------------------------------------------------------------------------------- envelopes
class EnvelopeNet(nn.Module):
    """A residual network along time (Wang, Yan and Oates, arXiv:1611.06455) with attention over time.

    Envelopes (B,2,W) -> logits (B,classes), and log attention (B,W/16). The head is given the features' mean, their
    maximum, for one outlier may be all there is to see, and their mean under the attention.
    """

    def __init__(self, width: int, classes: int, dropout: Sequence[float]):
        super().__init__()
        fine, coarse = 6 * width, 8 * width
        self.stem = nn.Sequential(_along_time(3, width, 7, 2), nn.ReLU(), Residual(width, width, 1, 7))
        self.body = nn.Sequential(
            Residual(width, 2 * width, 2, 7),
            Residual(2 * width, 4 * width, 2, 7),
            Residual(4 * width, fine, 2, 5),
        )
        self.top = Residual(fine, coarse, 2, 5)
        # Attention by fine and by coarse features; committed weights hold these names
        self.look_near = nn.Conv2d(fine, 1, 1)
        self.look_wide = nn.Conv2d(coarse, 1, 1)
        self.head = Head(3 * coarse, classes, dropout)

    def forward(self, envelopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top, bottom = envelopes.float().unbind(1)
        # bfloat16 resolves no more than 1/256 of the height: the line's thickness needs a channel of its own
        thickness = torch.log((top - bottom).clamp(min=1e-3) * 20) / 2
        fine = self.body(self.stem(torch.stack([top - 0.5, bottom - 0.5, thickness], 1)[:, :, None]))
        coarse = self.top(fine)
        evidence = self.look_near(fine) + self.look_wide(coarse).repeat_interleave(2, 3)
        log_attention = evidence.flatten(1).float().log_softmax(1)
        weights = log_attention.exp().unflatten(1, (-1, 2)).sum(2)[:, None, None]
        pooled = [coarse.mean((2, 3)), coarse.amax((2, 3)), (coarse * weights).sum((2, 3))]
        return self.head(torch.cat(pooled, 1)), log_attention

    def activation_maps(self, envelopes: torch.Tensor) -> torch.Tensor:
        """The attention: float32 (B,W/16) along time, each row summing to one."""
        return self(envelopes)[1].exp()


class Residual(nn.Module):
    """Two convolutions along time and a shortcut: (B,C,1,w) -> (B,channels,1,w/stride)."""

    def __init__(self, before: int, after: int, stride: int, kernel: int):
        super().__init__()
        self.first = _along_time(before, after, kernel, stride)
        self.second = _along_time(after, after, kernel)
        self.past = nn.Identity()
        if stride > 1 or before != after:
            self.past = nn.Sequential(nn.AvgPool2d((1, stride)), _along_time(before, after, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.past(x) + self.second(F.relu(self.first(x))))


def _along_time(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    # Two-dimensional with one row: kernels for it are faster on a CPU than those for one dimension
    convolution = nn.Conv2d(before, after, (1, kernel), (1, stride), (0, kernel // 2), bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


# -------------------------------------------------------------------------------------------- pictures
class PictureTrunk(nn.Module):
    """A backbone without its class layer: pictures uint8 (B,3,H,W) -> features (B,C,h,w)."""

    def __init__(self, name: str):
        super().__init__()
        network = torchvision.models.get_model(name, weights=None)
        deepest = list(backbones.BACKBONES[name].layers)[-1]
        self.network = create_feature_extractor(network, {deepest: "features"})
        self.features = backbones.BACKBONES[name].channels

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network(backbones.normalize(pictures))["features"]


class PictureNet(nn.Module):
    """Trunk, mean over all places, head: pictures uint8 (B,3,H,W) -> logits (B,classes), and no attention."""

    def __init__(self, trunk: PictureTrunk, classes: int, dropout: Sequence[float]):
        super().__init__()
        self.trunk, self.head = trunk, Head(trunk.features, classes, dropout)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.head(self.trunk(pictures).mean((2, 3))), None

    def activation_maps(self, pictures: torch.Tensor) -> torch.Tensor:
        """Where the predicted class comes from: float32 (B,w) >= 0 from left to right, the largest over each column.

        HiResCAM (Draelos and Carin, arXiv:2011.08891): Grad-CAM (Selvaraju et al., arXiv:1610.02391), each place by
        its own gradient.
        """
        features = self.trunk(pictures).detach().requires_grad_()
        with torch.enable_grad():
            predicted = self.head(features.mean((2, 3))).amax(1).sum()
        (gradient,) = torch.autograd.grad(predicted, features)
        return (gradient * features).sum(1).clamp(min=0).amax(1).detach()


@torch.no_grad()
def activation_maps(net: nn.Module, items: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """A network's ``activation_maps`` of all items: float32 (N,w) on the CPU, along time."""
    net.eval()
    return torch.cat([net.activation_maps(part.to(settings.DEVICE)).float().cpu() for part in items.split(batch)])


# ------------------------------------------------------------------------------------------ probabilities
class Classifier(nn.Module):
    """An ensemble of networks, or one alone, with temperature scaling.

    Probabilities are averaged over the networks and, with test-time augmentation, over the item as it is and by the
    ``flips``; then sharpened or blunted by the temperature (Guo et al., arXiv:1706.04599), which changes no ranking.
    """

    def __init__(self, make: Callable[[], nn.Module], count: int = 1, flips: Sequence[str] = ()):
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(count))
        self.flips = tuple(flips)
        self.register_buffer("temperature", torch.ones(()))

    @torch.inference_mode()
    def log_probabilities(self, items: torch.Tensor, members: Sequence[int] = (), batch: int = 128) -> torch.Tensor:
        """float32 (N,classes) on the CPU, before the temperature; of some of the members (() = all)."""
        self.eval()
        networks = [self.members[k] for k in members] or list(self.members)
        parts = [self._mean(networks, part.to(settings.DEVICE)).log().cpu() for part in items.split(batch)]
        return torch.cat(parts)

    def _mean(self, networks: list[nn.Module], items: torch.Tensor) -> torch.Tensor:
        flipped = views(items, self.flips)
        probabilities = [net(view)[0].float().softmax(1) for net in networks for view in flipped]
        return torch.stack(probabilities).mean(0).clamp(min=1e-12)

    def probabilities(self, items: torch.Tensor) -> torch.Tensor:
        """float32 (N,classes) on the CPU, each row summing to one."""
        return (self.log_probabilities(items) / self.temperature.cpu()).softmax(1)


def flip(items: torch.Tensor, name: str) -> torch.Tensor:
    """Items of either kind, mirrored: pictures by their pixels, envelopes as that of a mirrored picture."""
    if name == "vertical" and items.ndim == 3:
        return 1 - items.flip(1)  # the top edge becomes the bottom
    return items.flip(FLIPPED_AXES[name])


def views(items: torch.Tensor, flips: Sequence[str]) -> list[torch.Tensor]:
    """The items, and all ways to flip them."""
    flipped = [items]
    for name in flips:
        flipped += [flip(view, name) for view in flipped]
    return flipped


def fit_temperature(log_probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that makes labels (N,) most likely, to one part in a hundred."""
    grid = torch.logspace(-1, 1, 231, dtype=torch.float64)
    losses = [F.cross_entropy(log_probabilities.double() / t, labels) for t in grid]
    return float(grid[torch.stack(losses).argmin()])

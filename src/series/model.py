"""Networks that name a series' behaviour from its plot: from the picture, or from the trace of its line."""

from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from src import settings
from src.images import normalize

ENVELOPE = "envelope_resnet"
RESNET50_PARAMETERS = 24_692_297  # of the user's network, head included
LAST = ("permute", "features", "layer4", "trunk_output", "conv5", "layers")  # (B,C,h,w) in torchvision's classifiers
FLIPS = {"horizontal": -1, "vertical": -2}  # neither changes the class: time, or the value, runs backwards


class Head(nn.Sequential):
    """The user's head: features (B,F) -> logits (B,classes), by way of 512 and 256."""

    def __init__(self, features: int, classes: int, dropout: Sequence[float]):
        first, second, third = dropout
        super().__init__(
            nn.Dropout(first), nn.Linear(features, 512), nn.ReLU(), nn.BatchNorm1d(512),
            nn.Dropout(second), nn.Linear(512, 256), nn.ReLU(), nn.BatchNorm1d(256),
            nn.Dropout(third), nn.Linear(256, classes),
        )  # fmt: skip


# --------------------------------------------------------------------------------------------- trunks
class Residual(nn.Module):
    """Two convolutions along time and a way past them: (B,C,1,w) -> (B,channels,1,w/stride)."""

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


class EnvelopeNet(nn.Module):
    """A residual network along time (Wang, Yan and Oates, arXiv:1611.06455) with a place to look at.

    Traces (B,2,W) -> logits (B,classes), and log attention (B,W/16) over the time. The head is given the features'
    mean, their maximum, for one outlier may be all there is to see, and their mean under the attention.
    """

    def __init__(self, width: int, classes: int, dropout: Sequence[float]):
        super().__init__()
        fine, coarse = 6 * width, 8 * width
        self.stem = nn.Sequential(_along_time(3, width, 7, 2), nn.ReLU(), Residual(width, width, 1, 7))
        self.body = nn.Sequential(Residual(width, 2 * width, 2, 7), Residual(2 * width, 4 * width, 2, 7),
                                  Residual(4 * width, fine, 2, 5))  # fmt: skip
        self.top = Residual(fine, coarse, 2, 5)
        self.look_near, self.look_wide = nn.Conv2d(fine, 1, 1), nn.Conv2d(coarse, 1, 1)
        self.head = Head(3 * coarse, classes, dropout)

    def forward(self, traces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top, bottom = traces.float().unbind(1)
        # bfloat16 resolves no more than 1/256 of the height: the line's thickness needs a channel of its own
        thickness = torch.log((top - bottom).clamp(min=1e-3) * 20) / 2
        fine = self.body(self.stem(torch.stack([top - 0.5, bottom - 0.5, thickness], 1)[:, :, None]))
        found = self.top(fine)
        wide = self.look_wide(found).repeat_interleave(2, 3)
        looks = (self.look_near(fine) + wide).flatten(1).float().log_softmax(1)
        weights = looks.exp().unflatten(1, (-1, 2)).sum(2)[:, None, None]
        pooled = [found.mean((2, 3)), found.amax((2, 3)), (found * weights).sum((2, 3))]
        return self.head(torch.cat(pooled, 1)), looks

    def activation_maps(self, traces: torch.Tensor) -> torch.Tensor:
        """The attention: float32 (B,W/16) along time, each row summing to one."""
        return self(traces)[1].exp()


class PictureTrunk(nn.Module):
    """A torchvision classifier without its class layer: pictures uint8 (B,3,H,W) -> features (B,C,h,w)."""

    def __init__(self, name: str, size: tuple[int, int]):
        super().__init__()
        if name not in torchvision.models.list_models(torchvision.models):
            raise settings.InputError(f"backbone={name}: expected {ENVELOPE} or a classifier of torchvision, as resnet50")
        transformer = name.startswith("vit")
        if transformer and size[0] != size[1]:
            raise settings.InputError(f"backbone={name} sees squares alone, not size={size}")
        network = torchvision.models.get_model(name, weights=None, **({"image_size": size[0]} if transformer else {}))
        last = "encoder.ln" if transformer else next((node for node in LAST if hasattr(network, node)), None)
        if not last:
            raise settings.InputError(f"backbone={name} has none of the layers {', '.join(LAST)}: choose another")
        self.network = create_feature_extractor(network, {last: "features"})
        self.is_transformer = transformer
        with torch.no_grad():
            self.features = self.eval()(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape[1]
        self.train()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        found = self.network(normalize(pictures))["features"]
        if self.is_transformer:  # tokens (B,1+h*w,C), the first of which is no place
            side = int((found.shape[1] - 1) ** 0.5)
            found = found[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return found


class PictureNet(nn.Module):
    """Trunk, mean over all places, head: pictures uint8 (B,3,H,W) -> logits (B,classes), and no attention."""

    def __init__(self, trunk: PictureTrunk, classes: int, dropout: Sequence[float]):
        super().__init__()
        self.trunk, self.head = trunk, Head(trunk.features, classes, dropout)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.head(self.trunk(pictures).mean((2, 3))), None

    def activation_maps(self, pictures: torch.Tensor) -> torch.Tensor:
        """Where the class named comes from: float32 (B,w) >= 0 from left to right, the largest over each column.

        HiResCAM (Draelos and Carin, arXiv:2011.08891): Grad-CAM (Selvaraju et al., arXiv:1610.02391), each place by
        its own gradient.
        """
        found = self.trunk(pictures).detach().requires_grad_()
        with torch.enable_grad():
            named = self.head(found.mean((2, 3))).amax(1).sum()
        (slope,) = torch.autograd.grad(named, found)
        return (slope * found).sum(1).clamp(min=0).amax(1).detach()


# ------------------------------------------------------------------------------------------ probabilities
class Classifier(nn.Module):
    """One network or several of equal standing, with the temperature that makes their probabilities honest.

    Probabilities are averaged over the networks and, where ``flips`` names some, over the item as it is and flipped;
    then sharpened or blunted by the temperature (Guo et al., arXiv:1706.04599), which changes no ranking.
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
        chosen = [self.members[k] for k in members] or list(self.members)
        parts = [self._mean(chosen, part.to(settings.DEVICE)).log().cpu() for part in items.split(batch)]
        return torch.cat(parts)

    def _mean(self, chosen: list[nn.Module], items: torch.Tensor) -> torch.Tensor:
        seen = views(items, self.flips)
        found = [net(view)[0].float().softmax(1) for net in chosen for view in seen]
        return torch.stack(found).mean(0).clamp(min=1e-12)

    def probabilities(self, items: torch.Tensor) -> torch.Tensor:
        """float32 (N,classes) on the CPU, each row summing to one."""
        return (self.log_probabilities(items) / self.temperature.cpu()).softmax(1)


def flip(items: torch.Tensor, name: str) -> torch.Tensor:
    """Items of either kind, mirrored: pictures by their pixels, traces by what a picture's mirror image would give."""
    if name == "vertical" and items.ndim == 3:
        return 1 - items.flip(1)  # the upper edge becomes the lower
    return items.flip(FLIPS[name])


def views(items: torch.Tensor, flips: Sequence[str]) -> list[torch.Tensor]:
    """The items, and all ways to flip them."""
    found = [items]
    for name in flips:
        found += [flip(seen, name) for seen in found]
    return found


def fit_temperature(log_probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that makes labels (N,) most likely, to one part in a hundred."""
    grid = torch.logspace(-1, 1, 231, dtype=torch.float64)
    losses = [F.cross_entropy(log_probabilities.double() / t, labels) for t in grid]
    return float(grid[torch.stack(losses).argmin()])


@torch.no_grad()
def activation_maps(net: nn.Module, items: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Where a network looks: float32 (N,w) on the CPU along the time of the items, by its own ``activation_maps``."""
    net.eval()
    return torch.cat([net.activation_maps(part.to(settings.DEVICE)).float().cpu() for part in items.split(batch)])

"""A score learned from objects that never were: pieces of texture pasted into the training images.

No image of a real outlier is needed. Blobs, filled with a turned, rescaled and recoloured piece of the same image or
with noise, are pasted into training images; a small head on the frozen backbone's features of four depths learns where
they are. It sees what the classes' logits no longer tell: texture and colour, beside what is usual around them.
Related: outlier exposure (Hendrycks et al., ICLR 2019), CutPaste (Li et al., CVPR 2021), residual pattern learning
(Liu et al., arXiv:2211.14512), which all train on more than the normal images say, by other means.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from src import settings, training
from src.images import denormalize, normalize
from src.metrics import PixelRanking
from src.road.data import IGNORE, Augment, RoadDataset

# Modules of a backbone whose outputs the head sees, shallow to deep; the last gives the resolution.
FEATURE_LAYERS = {
    "mobilenet_v2": ("3", "6", "13", "17"),
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
}
SIZE = (0.04, 0.6)  # height of a pasted object in image heights, log-uniform
WIDTH, DROPOUT = 256, 0.1
LR, WEIGHT_DECAY = 1e-3, 1e-2
JITTERED_SHARE = 0.7  # share of the training views that are turned into another camera's
_JITTER = v2.ColorJitter(0.4, 0.4, 0.6, 0.08)
_VALIDATION = 48  # images at most


def layer_outputs(backbone: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Outputs of the named modules of a backbone whose modules run one after the other; images (B,3,H,W)."""
    found, x = {}, images
    for name, module in backbone.items():
        x = module(x)
        if name in names:
            found[name] = x
    return found


class OutlierHead(nn.Module):
    """Features of several depths, dict of (B,C,h,w) -> logits (B,h,w) of "pasted", at the deepest's resolution.

    Finer features are averaged down to it. ``names`` and ``channels`` say which, in order.
    """

    def __init__(self, names: Sequence[str], channels: Sequence[int]):
        super().__init__()
        self.names = tuple(names)
        self.net = nn.Sequential(
            nn.BatchNorm2d(sum(channels), affine=False),
            nn.Dropout(DROPOUT),
            nn.Conv2d(sum(channels), WIDTH, 1),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Conv2d(WIDTH, WIDTH // 4, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(WIDTH // 4, 1, 1),
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        size = features[self.names[-1]].shape[-2:]
        pooled = [F.adaptive_avg_pool2d(features[name].float(), size) for name in self.names]
        return self.net(torch.cat(pooled, 1))[:, 0]


def build_head(backbone_name: str, backbone: nn.Module) -> OutlierHead:
    """A head, randomly initialised, that fits a road model's backbone."""
    names = FEATURE_LAYERS[backbone_name]
    with torch.inference_mode():
        features = layer_outputs(backbone.eval(), names, torch.zeros(1, 3, 64, 64, device=next(backbone.parameters()).device))
    return OutlierHead(names, [features[name].shape[1] for name in names])


# ------------------------------------------------------------------------------------ pasted objects
def _uniform(low: float, high: float) -> float:
    return torch.empty(()).uniform_(low, high).item()


def _log_uniform(low: float, high: float) -> float:
    return math.exp(_uniform(math.log(low), math.log(high)))


def _noise(height: int, width: int, power: float) -> Tensor:
    """Noise (h,w) of unit variance with amplitudes 1 / frequency**power: larger powers are smoother."""
    rows, columns = max(height, 8), max(width, 8)
    spectrum = torch.fft.rfft2(torch.randn(rows, columns))
    radius = torch.hypot(torch.fft.fftfreq(rows)[:, None] * rows, torch.fft.rfftfreq(columns)[None] * columns)
    radius[0, 0] = math.inf
    tile = torch.fft.irfft2(spectrum / radius**power, s=(rows, columns))
    return (tile / tile.std())[:height, :width]


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]


def _shape(height: int, width: int) -> Tensor:
    """A random outline, bool (h,w): diamond, ellipse or rounded box with a border of noise."""
    y, x = _grid(height, width)
    power = (1, 2, 4)[int(torch.randint(3, ()))]
    base = 1 - (x.abs() ** power + y.abs() ** power) / 0.7
    return base + _uniform(0, 0.6) * _noise(height, width, _uniform(1.6, 2.4)) > 0


def _piece(image: Tensor, height: int, width: int) -> Tensor:
    """A piece of the image, turned, rescaled and recoloured: (3,h,w)."""
    scale = _log_uniform(0.15, 1.5)
    rows, columns = (
        min(max(8, int(n * scale)), side) for n, side in zip((height, width), image.shape[1:], strict=True)
    )
    top = int(torch.randint(image.shape[1] - rows + 1, ()))
    left = int(torch.randint(image.shape[2] - columns + 1, ()))
    piece = image[:, top : top + rows, left : left + columns].rot90(int(torch.randint(4, ())), (1, 2))
    piece = F.interpolate(piece[None], (height, width), mode="bilinear", antialias=True)[0]
    mean = piece.mean((1, 2), keepdim=True)
    return mean + _log_uniform(0.5, 2) * (piece - mean)[torch.randperm(3)] + _tint()


def _clouds(height: int, width: int) -> Tensor:
    """Noise between two colours, at times striped: (3,h,w) in units of the normalised image."""
    noise = _noise(height, width, _uniform(0.6, 2.2))
    if torch.rand(()) < 0.3:
        y, x = torch.arange(height)[:, None], torch.arange(width)[None]
        wave = _log_uniform(0.05, 1) * (_uniform(-1, 1) * y + _uniform(-1, 1) * x)
        noise = 0.3 * noise + 1.5 * wave.sin()
    share = (noise * _uniform(0.5, 3)).sigmoid()
    one, other = (1.2 * torch.randn(1, 1, 1) + _tint() for _ in range(2))
    return one * share + other * (1 - share)


def _tint() -> Tensor:
    return 0.7 * _uniform(0, 1) * torch.randn(3, 1, 1)


def paste(image: Tensor) -> tuple[Tensor, Tensor]:
    """One to three objects into an image float32 (3,H,W), normalised: a new image, and where they are, bool (H,W)."""
    image, where = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    low, high = image.amin((1, 2))[:, None, None], image.amax((1, 2))[:, None, None]  # no brighter than the photograph
    full_height, full_width = where.shape
    for _ in range(int(torch.randint(1, 4, ()))):
        height = max(8, int(full_height * _log_uniform(*SIZE)))
        width = min(max(8, int(height * _log_uniform(0.45, 2.2))), full_width)
        outline = _shape(height, width)
        texture = _piece(image, height, width) if torch.rand(()) < 0.6 else _clouds(height, width)
        (y, x), angle = _grid(height, width), _uniform(0, 2 * math.pi)
        lit = texture + _uniform(0, 0.8) * (math.cos(angle) * x + math.sin(angle) * y)
        alpha = outline.float()[None]
        if torch.rand(()) < 0.5:  # else a crisp border
            alpha = F.avg_pool2d(alpha, 3, 1, 1)
        place, part = _place(where.shape, (height, width))
        image[:, *place] = alpha[:, *part] * lit.clamp(low, high)[:, *part] + (1 - alpha[:, *part]) * image[:, *place]
        where[place] |= outline[part]
    return image, where


def _place(full: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where an object lands, centred anywhere in the image, and which part of it the image's border leaves."""
    place, part = [], []
    for whole, own in zip(full, size, strict=True):
        start = int(torch.randint(whole, ())) - own // 2
        place.append(slice(max(0, start), min(whole, start + own)))
        part.append(slice(max(0, -start), min(own, whole - start)))
    return tuple(place), tuple(part)


def photometric_jitter(image: Tensor) -> Tensor:
    """The same view by another camera, in other light: float32 (3,H,W), normalised, to the same.

    Without it the head takes any other camera's street for something pasted in.
    """
    pixels = _JITTER(denormalize(image).clamp(0, 1)) ** _log_uniform(0.6, 1.7)
    pixels = pixels * torch.empty(3, 1, 1).uniform_(0.8, 1.2)
    if torch.rand(()) < 0.4:
        pixels = TF.gaussian_blur(pixels, [7, 7], [_uniform(0.3, 2.0)])
    return normalize(pixels.add(torch.randn_like(pixels), alpha=_uniform(0, 0.04)).clamp(0, 1))


class Pasted:
    """Training view with pasted objects: ``image`` float32 (3,h,w), ``mask`` int64 (h,w): 1 pasted, 0 not, IGNORE.

    ``cameras`` is the share of the views that are turned into another camera's.
    """

    def __init__(self, augment: Augment, cameras: float):
        self.augment, self.cameras = augment, cameras

    def __call__(self, sample: dict) -> dict[str, Tensor]:
        view = self.augment(sample)
        image, where = paste(view["image"])
        if torch.rand(()) < self.cameras:
            image = photometric_jitter(image)
        return {"image": image, "mask": torch.where(view["mask"] == IGNORE, IGNORE, 0).masked_fill(where, 1)}


# ------------------------------------------------------------------------------------------ training
def loss(head: nn.Module, batch: dict, features: Callable[[Tensor], dict[str, Tensor]]) -> Tensor:
    """Binary cross-entropy at the features' resolution: which share of a cell's labelled part is pasted."""
    logits = head(features(batch["image"])).float()
    labelled = (batch["mask"] != IGNORE).float()[:, None]
    weight = F.adaptive_avg_pool2d(labelled, logits.shape[-2:])[:, 0]
    share = F.adaptive_avg_pool2d((batch["mask"] == 1).float()[:, None], logits.shape[-2:])[:, 0]
    share = (share / weight.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(max=1)  # of the labelled part
    terms = F.binary_cross_entropy_with_logits(logits, share, reduction="none")
    return (terms * weight).sum() / weight.sum().clamp(min=1)


@torch.inference_mode()
def validate(head: nn.Module, views: Sequence[dict], features: Callable, config) -> dict[str, float]:
    """``aupr`` of the pasted pixels of validation views, pooled."""
    ranking = PixelRanking()
    for view in views:
        view = training.to_device({name: part[None] for name, part in view.items()})
        with training.autocast(config):
            score = head(features(view["image"]))
        score = F.interpolate(score[:, None].float(), view["mask"].shape[-2:], mode="bilinear")[:, 0]
        known = view["mask"] != IGNORE
        ranking.update(score[known], view["mask"][known] == 1)
    return {"aupr": ranking.compute()["aupr"].value}


def fit(model: nn.Module, train: RoadDataset, val: RoadDataset, config, run_dir: Path) -> list[dict]:
    """Train (or resume) ``model.outlier_head`` on the frozen backbone's features; returns the history.

    The epoch is chosen by ``validate`` on validation images with pasted objects. The model is left in eval mode.
    """
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    head = model.outlier_head
    augment = Augment(config.augmentation, len(train.classes), config.image_size, config.crop_size)
    still = Pasted(Augment("none", len(val.classes), config.image_size, None), 0.0)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        return layer_outputs(model.backbone, head.names, images)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        views = [still(val[index]) for index in range(0, len(val), -(-len(val) // _VALIDATION))]
    own = replace(config, epochs=config.outlier_epochs, optimizer="adamw", lr=LR, weight_decay=WEIGHT_DECAY,
                  schedule="cosine", warmup=20)  # fmt: skip
    return training.fit(
        head,
        training.Batches(train, own, Pasted(augment, JITTERED_SHARE)),
        partial(loss, features=features),
        partial(validate, views=views, features=features, config=own),
        own,
        run_dir=run_dir,
        monitor="aupr",
    )

"""A score learned from pasted synthetic anomalies (CutPaste-style): pieces of texture in the training images.

No image of a real anomaly is needed. Blobs, filled with a turned, rescaled and recoloured piece of the same image or
with noise, are pasted into training images; a small head on the frozen backbone's features of four depths learns where
they are. These features still hold texture and colour, and what is usual around them, which the logits do not.
Related: outlier exposure (Hendrycks et al., ICLR 2019), CutPaste (Li et al., CVPR 2021), residual pattern learning
(Liu et al., arXiv:2211.14512), which all train on more than the normal images, by other means.
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
from src.backbones import denormalize, normalize
from src.metrics import PixelRanking
from src.road.config import Config
from src.road.data import IGNORE, LabelClass, RoadDataset
from src.road.model import layer_outputs
from src.road.transforms import Augment

SIZE = (0.04, 0.6)  # height of a pasted object in image heights, log-uniform
SMALL = (0.02, 0.12)  # of one that stands on the road, as lost cargo seen from afar
SMALL_SHARE = 0.5  # share of the training views whose objects are such ones
LR, WEIGHT_DECAY = 1e-3, 1e-2
JITTERED_SHARE = 0.7  # share of the training views that get photometric jitter
_JITTER = v2.ColorJitter(0.4, 0.4, 0.6, 0.08)
_VALIDATION = 48  # images at most


# ------------------------------------------------------------------------------------ pasted anomalies
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


def _outline(height: int, width: int) -> Tensor:
    """A random outline, bool (h,w): diamond, ellipse or rounded box with a border of noise."""
    y, x = _grid(height, width)
    power = (1, 2, 4)[int(torch.randint(3, ()))]
    base = 1 - (x.abs() ** power + y.abs() ** power) / 0.7
    return base + _uniform(0, 0.6) * _noise(height, width, _uniform(1.6, 2.4)) > 0


def _piece(image: Tensor, height: int, width: int) -> Tensor:
    """A piece of the image, turned, rescaled and recoloured: (3,h,w)."""
    scale = _log_uniform(0.15, 1.5)
    rows = min(max(8, int(height * scale)), image.shape[1])
    columns = min(max(8, int(width * scale)), image.shape[2])
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
    first, second = (1.2 * torch.randn(1, 1, 1) + _tint() for _ in range(2))
    return first * share + second * (1 - share)


def _tint() -> Tensor:
    return 0.7 * _uniform(0, 1) * torch.randn(3, 1, 1)


def paste(image: Tensor, ground: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One to three objects into an image float32 (3,H,W), normalised: a new image, and where they are, bool (H,W).

    Of all sizes and anywhere, or small and standing on ``ground``, bool (H,W), if there is any.
    """
    standing = ground.nonzero() if ground is not None else []
    image, pasted = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    low, high = image.amin((1, 2))[:, None, None], image.amax((1, 2))[:, None, None]  # no brighter than the photograph
    image_height, image_width = pasted.shape
    for _ in range(int(torch.randint(1, 4, ()))):
        smallest, sizes = (4, SMALL) if len(standing) else (8, SIZE)
        height = max(smallest, int(image_height * _log_uniform(*sizes)))
        width = min(max(smallest, int(height * _log_uniform(0.45, 2.2))), image_width)
        outline = _outline(height, width)
        texture = _piece(image, height, width) if torch.rand(()) < 0.6 else _clouds(height, width)
        (y, x), angle = _grid(height, width), _uniform(0, 2 * math.pi)
        lit = texture + _uniform(0, 0.8) * (math.cos(angle) * x + math.sin(angle) * y)
        alpha = outline.float()[None]
        if torch.rand(()) < 0.5:  # else a crisp border
            alpha = F.avg_pool2d(alpha, 3, 1, 1)
        if len(standing):
            y, x = standing[int(torch.randint(len(standing), ()))].tolist()
            top, left = y - height, x - width // 2
        else:
            top = int(torch.randint(image_height, ())) - height // 2
            left = int(torch.randint(image_width, ())) - width // 2
        rows, object_rows = _visible(top, height, image_height)
        columns, object_columns = _visible(left, width, image_width)
        visible = (object_rows, object_columns)
        background = image[:, rows, columns]
        alpha = alpha[:, *visible]
        image[:, rows, columns] = alpha * lit.clamp(low, high)[:, *visible] + (1 - alpha) * background
        pasted[rows, columns] |= outline[visible]
    return image, pasted


def _visible(start: int, side: int, image_side: int) -> tuple[slice, slice]:
    """Where an object that starts there lies along one side of the image, and which part of it is inside."""
    end = min(image_side, start + side)
    return slice(max(0, start), end), slice(max(0, -start), end - start)


def photometric_jitter(image: Tensor) -> Tensor:
    """The same view in the colours, blur and noise of another camera: float32 (3,H,W), normalised, to the same.

    Without it the head gives high scores to whatever another camera photographs.
    """
    pixels = _JITTER(denormalize(image).clamp(0, 1)) ** _log_uniform(0.6, 1.7)
    pixels = pixels * torch.empty(3, 1, 1).uniform_(0.8, 1.2)
    if torch.rand(()) < 0.4:
        pixels = TF.gaussian_blur(pixels, [7, 7], [_uniform(0.3, 2.0)])
    return normalize(pixels.add(torch.randn_like(pixels), alpha=_uniform(0, 0.04)).clamp(0, 1))


class PastedAnomalies:
    """Training view with pasted objects: ``image`` float32 (3,h,w), ``mask`` int64 (h,w): 1 pasted, 0 not, IGNORE.

    ``SMALL_SHARE`` of the views get small objects on the road, ``jittered_share`` of them ``photometric_jitter``.
    """

    def __init__(self, augment: Augment, classes: Sequence[LabelClass], jittered_share: float):
        self.augment, self.jittered_share = augment, jittered_share
        self.road = [entry.name for entry in classes].index("road")

    def __call__(self, sample: dict) -> dict[str, Tensor]:
        view = self.augment(sample)
        ground = view["mask"] == self.road if torch.rand(()) < SMALL_SHARE else None
        image, pasted = paste(view["image"], ground)
        if torch.rand(()) < self.jittered_share:
            image = photometric_jitter(image)
        return {"image": image, "mask": torch.where(view["mask"] == IGNORE, IGNORE, 0).masked_fill(pasted, 1)}


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
def validate(head: nn.Module, views: Sequence[dict], features: Callable, config: Config) -> dict[str, float]:
    """``aupr`` of the pasted pixels of validation views, pooled."""
    ranking = PixelRanking()
    for view in views:
        view = training.to_device({name: part[None] for name, part in view.items()})
        with training.autocast(config):
            score = head(features(view["image"]))
        score = F.interpolate(score[:, None].float(), view["mask"].shape[-2:], mode="bilinear")[:, 0]
        labelled = view["mask"] != IGNORE
        ranking.update(score[labelled], view["mask"][labelled] == 1)
    return {"aupr": ranking.compute()["aupr"].value}


def validation_views(dataset: RoadDataset, config: Config) -> list[dict[str, Tensor]]:
    """Images at even distances over a split with anomalies pasted from the config's seed, the same in each epoch."""
    views = Augment("none", len(dataset.classes), config.image_size, None)
    augment = PastedAnomalies(views, dataset.classes, 0.0)
    step = -(-len(dataset) // _VALIDATION)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return [augment(dataset[index]) for index in range(0, len(dataset), step)]


def fit(
    model: nn.Module,
    train: RoadDataset,
    val: RoadDataset,
    config: Config,
    run_dir: Path,
    fingerprint: str | None = None,
) -> list[dict]:
    """Train (or resume) ``model.outlier_head`` on the frozen backbone's features; returns the history.

    The epoch is chosen by ``validate`` on validation images with pasted objects. The model is left in eval mode.
    """
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    head = model.outlier_head
    config = replace(
        config,
        epochs=config.outlier_epochs,
        optimizer="adamw",
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        schedule="cosine",
        warmup=20,
    )
    augment = Augment(config.augmentation, len(train.classes), config.image_size, config.crop_size)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        return layer_outputs(model.backbone, head.names, images)

    return training.fit(
        head,
        training.Batches(train, config, PastedAnomalies(augment, train.classes, JITTERED_SHARE)),
        partial(loss, features=features),
        partial(validate, views=validation_views(val, config), features=features, config=config),
        config,
        run_dir=run_dir,
        monitor="aupr",
        fingerprint=fingerprint,
    )

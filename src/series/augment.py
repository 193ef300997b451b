"""What training changes about its items, a batch at a time: nothing that would change the class.

All draws are from torch's own generator, which ``training.fit`` seeds for each epoch and process.
"""

import torch
from torchvision.transforms.v2 import functional as TF

from src.series.model import flip


def augment(items: torch.Tensor, where: torch.Tensor, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of a batch, traces (B,2,W) or pictures uint8 (B,3,H,W), changed one by one as the config says.

    ``where`` (B,w), what is known of their events along time, runs backwards where the item does. Rotation and colour
    belong to pictures; noise and cutout act along the time of both.
    """
    for name in config.flips:
        coins = torch.rand(len(items), device=items.device) < 0.5
        items = torch.where(_each(coins, items), flip(items, name), items)
        if name == "horizontal":
            where = torch.where(coins[:, None], where.flip(1), where)
    if items.ndim == 4:
        items = _turn_and_tint(items, config.rotation, config.color_jitter)
    if config.noise:
        items = _noisy(items, config.noise)
    return (_cut_out(items, config.cutout) if config.cutout else items), where


def mix(items: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """mixup (Zhang et al., arXiv:1710.09412): items and targets (B,classes) blended with those of another order."""
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    order = torch.randperm(len(items), device=items.device)
    blend = weight * items.float() + (1 - weight) * items[order].float()
    return blend.to(items.dtype), weight * targets + (1 - weight) * targets[order]


def _each(values: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Values (B,) in the shape that broadcasts over the items."""
    return values.to(items.device).reshape(-1, *[1] * (items.ndim - 1))


def _turn_and_tint(pictures: torch.Tensor, degrees: float, strength: float) -> torch.Tensor:
    if degrees:
        angles = torch.empty(len(pictures)).uniform_(-degrees, degrees).tolist()
        pictures = torch.stack([TF.rotate(p, a, fill=255) for p, a in zip(pictures, angles, strict=True)])
    if strength:
        factors = torch.empty(2, len(pictures)).uniform_(1 - strength, 1 + strength)
        pictures = torch.stack([TF.adjust_contrast(TF.adjust_brightness(p, float(b)), float(c))
                                for p, b, c in zip(pictures, *factors, strict=True)])  # fmt: skip
    return pictures


def _noisy(items: torch.Tensor, std: float) -> torch.Tensor:
    """Gaussian noise, ``std`` as a share of the items' range; a trace keeps the thickness of its line."""
    is_picture = items.ndim == 4
    scale, shape = (255, items.shape) if is_picture else (1, (len(items), 1, items.shape[2]))
    found = items.float() + std * scale * torch.randn(shape, device=items.device)
    return found.clamp(0, 255).to(items.dtype) if is_picture else found.to(items.dtype)


def _cut_out(items: torch.Tensor, share: float) -> torch.Tensor:
    """A stretch of ``share`` of the time hidden (DeVries and Taylor, arXiv:1708.04552): white, or a flat line."""
    width = items.shape[-1]
    start = _each(torch.rand(len(items)) * (1 - share) * width, items)
    columns = torch.arange(width, device=items.device)
    hidden = (columns >= start) & (columns < start + share * width)
    return torch.where(hidden, 255 if items.ndim == 4 else items.float().mean(2, True).to(items.dtype), items)

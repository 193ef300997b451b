"""Scores from the features of a frozen ImageNet backbone: nearest neighbours, and a student of the features.

The backbone describes every place of an image, 8 pixels apart, by one vector: the maps of its ``local`` layers side by
side, each averaged over 3 x 3 places as PatchCore does (Roth et al., CVPR 2022, arXiv:2106.08265). What good parts are
like is kept in one of two ways, each of which gives a signal:

- ``Memory``: vectors of good parts, spread over all that occur. ``distance``: how far the nearest of them are.
- ``FeatureStudent``: learns to free the vectors of good parts from noise. ``error``: where it changes clean ones.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from src.backbones import BACKBONES
from src.defects.config import Config

WIDTH = 512  # channels of a student's hidden layers
NEIGHBOURS = 3  # whose mean distance counts
_PLACES = 1024  # at a time: bounds the memory that their distances take


def upsample(maps: torch.Tensor, stride: int, size: tuple[int, int]) -> torch.Tensor:
    """Maps (...,h,w) known at the pixels 0, stride, ... -> (...,H,W): bilinear between, the last held at the edge."""
    if stride == 1:
        return maps
    *lead, height, width = maps.shape
    reached = ((height - 1) * stride + 1, (width - 1) * stride + 1)
    full = F.interpolate(maps.reshape(1, -1, height, width), reached, mode="bilinear", align_corners=True)
    full = F.pad(full, (0, size[1] - reached[1], 0, size[0] - reached[0]), mode="replicate")
    return full.reshape(*lead, *size)


class Features(nn.Module):
    """The frozen backbone: images float32 (B,3,H,W), normalised -> vectors (B,D,ceil(H/8),ceil(W/8)).

    Vector (i,j) is centred on the pixel (8i,8j), as padded strided convolutions are.
    """

    def __init__(self, network: nn.Module, backbone: str):
        super().__init__()
        layers = BACKBONES[backbone].local
        self.channels = sum(BACKBONES[backbone].layers[layer] for layer in layers)
        self.network = create_feature_extractor(network, list(layers)).requires_grad_(False).eval()

    def train(self, mode: bool = True):
        return super().train(False)  # frozen: batch norms keep their statistics

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = [F.avg_pool2d(m, 3, 1, 1, count_include_pad=False) for m in self.network(images).values()]
        size = tuple(maps[0].shape[-2:])
        return torch.cat([m if m.shape[-2:] == size else upsample(m, 2, size) for m in maps], 1)


class Memory(nn.Module):
    """``count`` vectors of good parts: vectors (B,D,h,w) -> mean distance to their nearest neighbours (B,h,w)."""

    def __init__(self, count: int, channels: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(count, channels))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        places, nearest = vectors.movedim(1, -1), min(NEIGHBOURS, len(self.vectors))
        distances = [
            torch.cdist(part, self.vectors).topk(nearest, largest=False).values.mean(1)
            for part in places.flatten(0, -2).split(_PLACES)
        ]
        return torch.cat(distances).view(places.shape[:-1])


class FeatureStudent(nn.Module):
    """Restores vectors (B,D,...) of good parts from noisy ones, and gives its squared error there (B,...).

    A denoising autoencoder (Vincent et al., ICML 2008) of the frozen teacher's features. A student that only imitates
    also imitates defects; noise forces it to know what good parts look like, and it moves everything else towards them.
    Vectors are whitened by ``mean`` (D,) and ``whitening`` (D,D) of the training images: directions in which good
    parts hardly differ count as much as others. The error is the mean over channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        layers = [nn.Linear(channels, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, channels)]
        self.net = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whitening", torch.eye(channels))

    def forward(self, vectors: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        target = (vectors.movedim(1, -1) - self.mean) @ self.whitening
        noisy = target + noise * torch.randn_like(target) if noise else target
        return (self.net(noisy) - target).float().square().mean(-1)


class FeatureDetector(nn.Module):
    """The backbone, and what the method keeps of each category's good parts: a student or a memory.

    ``stride``: pixels between places. ``patch_size``: pixels that a place stands for where borders and smoothing are
    concerned.
    """

    stride, patch_size = 8, 32

    def __init__(self, config: Config, categories: Sequence[str]):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.backbone = Features(torchvision.models.get_model(config.backbone, weights=None), config.backbone)
            channels = self.backbone.channels
            self.students, self.memories = nn.ModuleDict(), nn.ModuleDict()
            for name in categories:
                if config.method == "feature_student":
                    self.students[name] = FeatureStudent(channels)
                else:
                    self.memories[name] = Memory(config.memory, channels)

    @torch.inference_mode()
    def forward(self, images: torch.Tensor, category: str) -> torch.Tensor:
        """Signal and contrast (2,B,h,w) of images float32 (B,3,H,W), normalised. The contrast is 1 everywhere.

        Knowing the norm of the vectors did not help on validation images of magnetic tiles.
        """
        vectors = self.backbone(images)
        part = (self.students or self.memories)[category]
        return torch.stack([part(vectors), torch.ones_like(vectors[:, 0])])

"""Uninformed Students (Bergmann et al., CVPR 2020, arXiv:1911.02357): patch networks, a teacher, its students.

A patch network maps a p x p patch to one descriptor, with valid convolutions alone. So it can run over a whole
image at once, a descriptor every ``stride`` pixels: what the students train on here, and what ``dense`` turns
into a descriptor for every pixel.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from src.backbones import BACKBONES
from src.defects.config import Config
from src.defects.features import FeatureDetector

POOL = "pool"  # 2 x 2 maximum, stride 2
# Patch size -> layers: (kernel, channels in units of the width); the last convolution gives the descriptor.
LAYERS = {
    17: ((6, 1), (5, 2), (5, 2), (4, 1)),
    33: ((5, 1), POOL, (5, 2), POOL, (2, 2), (4, 1)),
    65: ((5, 1), POOL, (5, 1), POOL, (5, 1), POOL, (4, 2), (1, 1)),
}


class PatchNet(nn.Sequential):
    """The patch CNN of Bergmann et al. (appendix, tables 1 to 3) for patches of ``patch_size`` pixels.

    float32 (B,3,H,W) -> (B,descriptor,h,w): one descriptor for every p x p patch whose corner lies on the grid
    of ``stride`` pixels; (B,descriptor,1,1) for single patches.
    """

    def __init__(self, patch_size: int, descriptor: int = 128, width: int = 128):
        layers, channels = [], 3
        for layer in LAYERS[patch_size]:
            if layer == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, layer[1] * width, layer[0]), nn.LeakyReLU(0.005)]
            channels = layer[1] * width
        last = layers[-2]
        layers[-2:] = [nn.Conv2d(last.in_channels, descriptor, last.kernel_size)]
        super().__init__(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):  # torch's default shrinks the signal at each layer: nothing is learnt
                nn.init.kaiming_normal_(layer.weight, a=0.005)
                nn.init.zeros_(layer.bias)
        self.patch_size, self.descriptor = patch_size, descriptor
        self.stride = 2 ** LAYERS[patch_size].count(POOL)


# ------------------------------------------------------------------------------------------ teacher
class FeatureExtractor(nn.Module):
    """A frozen classifier of ``src.backbones``, cut off at a depth: patches (N,3,p,p) -> features (N,C).

    The features are averages over space.

    ``last`` is what its class layer sees. Of a small patch that is hard to predict; ``middle`` describes texture
    and parts, which is also what a defect changes (Batzner et al., EfficientAD, arXiv:2303.14535, distil the same).
    """

    def __init__(self, network: nn.Module, backbone: str, depth: str, patch_pixels: int):
        super().__init__()
        layers = BACKBONES[backbone].layers
        layer = BACKBONES[backbone].middle if depth == "middle" else list(layers)[-1]
        self.channels, self.patch_pixels = layers[layer], patch_pixels
        self.network = create_feature_extractor(network, {layer: "features"}).requires_grad_(False).eval()

    def train(self, mode: bool = True):
        return super().train(False)  # frozen: batch norms keep their statistics

    @torch.no_grad()
    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.features(patches)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """``forward`` with gradients, to fine-tune a copy."""
        size = (self.patch_pixels, self.patch_pixels)
        enlarged = F.interpolate(patches, size, mode="bilinear", align_corners=False)
        return self.network(enlarged)["features"].float().mean((2, 3))


class Teacher(nn.Module):
    """A patch network, and the linear decoder that distillation alone needs (none where the sizes agree)."""

    def __init__(self, net: PatchNet, features: int):
        super().__init__()
        self.net = net
        self.decoder = nn.Identity() if features == net.descriptor else nn.Linear(net.descriptor, features)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches (N,3,p,p) -> descriptors (N,d), and the backbone's standardised features (N,C) as decoded."""
        descriptors = self.net(patches).flatten(1)
        return descriptors, self.decoder(descriptors)


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def compactness(descriptors: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """How redundant the dimensions of descriptors (N,d) are: |correlation| over all pairs of dimensions.

    ``sum`` is the paper's loss. It grows with d squared, and with fewer than d descriptors even independent
    dimensions correlate by chance, so that it drowns the distillation; ``mean`` over the pairs does not.
    A dimension that does not vary has correlation 0.
    """
    count, size = descriptors.shape
    centred = descriptors.float() - descriptors.float().mean(0)
    normed = centred / (centred.square().sum(0) + 1e-6 * count).sqrt()
    total = (normed.T @ normed).triu(1).abs().sum()
    return total if reduction == "sum" else total / (size * (size - 1) / 2)


def effective_rank(descriptors: torch.Tensor) -> float:
    """exp(entropy) of the normalised eigenvalues of the covariance of descriptors (N,d): 1 to d dimensions in use.

    Roy and Vetterli, 2007, with eigenvalues (variances) in place of singular values.
    """
    shares = torch.linalg.eigvalsh(torch.cov(descriptors.double().T)).clamp(min=0)
    shares = shares / shares.sum()
    return float(torch.special.entr(shares).sum().exp())


# ----------------------------------------------------------------------------------------- students
class Students(nn.Module):
    """M patch networks that learn to predict the teacher's descriptors, from defect-free images alone.

    ``mean`` and ``std`` (d,) are the teacher's over the training images: students regress its descriptors
    normalised by them.
    """

    def __init__(self, nets: list[PatchNet]):
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("mean", torch.zeros(nets[0].descriptor))
        self.register_buffer("std", torch.ones(nets[0].descriptor))

    def normalize(self, descriptors: torch.Tensor) -> torch.Tensor:
        """The teacher's descriptors (B,d,h,w) as the students' targets."""
        return (descriptors - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B,3,H,W) -> descriptors (M,B,d,h,w) on the patch network's own grid."""
        return torch.stack([net(images) for net in self.nets])


class StudentTeacher(nn.Module):
    """``teachers[size]`` for each patch size and, for each category and patch size, ``students[category][size]``."""

    def __init__(self, config: Config, categories: Sequence[str]):
        super().__init__()
        sizes = {str(size): size for size in config.patch_sizes}
        self.teachers = nn.ModuleDict({name: _teacher_net(config, size) for name, size in sizes.items()})
        self.students = nn.ModuleDict()
        for category in categories:
            students = {name: Students(_student_nets(config, size)) for name, size in sizes.items()}
            self.students[category] = nn.ModuleDict(students)


Detector = StudentTeacher | FeatureDetector


def build_model(config: Config, extras: Mapping[str, Any] | None = None) -> Detector:
    """The networks of the config's method, initialised, of the categories in a checkpoint's ``extras``.

    Without ``extras``, of those that the config names.
    """
    calibration = extras["calibration"] if extras else {}
    categories = tuple(calibration) or config.categories or (config.dataset,)
    return (StudentTeacher if config.method == "uninformed_students" else FeatureDetector)(config, categories)


def _teacher_net(config: Config, patch_size: int) -> PatchNet:
    return _seeded_net(config.seed, patch_size, config.descriptor, config.teacher_width)


def _student_nets(config: Config, patch_size: int) -> list[PatchNet]:
    seeds = range(config.seed + 1, config.seed + 1 + config.students)
    return [_seeded_net(seed, patch_size, config.descriptor, config.width) for seed in seeds]


def _seeded_net(seed: int, patch_size: int, descriptor: int, width: int) -> PatchNet:
    """A patch network initialised from a seed of its own: students that start alike would agree everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchNet(patch_size, descriptor, width)

"""Uninformed Students (Bergmann et al., CVPR 2020, arXiv:1911.02357): patch networks, a teacher, its students.

A patch network maps a p x p patch to one descriptor, with valid convolutions alone. So it can run over a whole
image at once, a descriptor every ``stride`` pixels: what the students train on here, and what ``dense`` turns
into a descriptor for every pixel.
"""

from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from src import checkpoints, settings

POOL = "pool"  # 2 x 2 maximum, stride 2
# Patch size -> layers: (kernel, channels in units of the width); the last convolution gives the descriptor.
LAYERS = {
    17: ((6, 1), (5, 2), (5, 2), (4, 1)),
    33: ((5, 1), POOL, (5, 2), POOL, (2, 2), (4, 1)),
    65: ((5, 1), POOL, (5, 1), POOL, (5, 1), POOL, (4, 2), (1, 1)),
}
BACKBONES = {"resnet18": 512, "squeezenet1_0": 512, "mobilenet_v2": 1280}  # name -> channels of its pooled features


class PatchNet(nn.Sequential):
    """The patch CNN of Bergmann et al. (appendix, tables 1 to 3) for patches of ``patch_size`` pixels.

    float32 (B,3,H,W) -> (B,descriptor,h,w): one descriptor for every p x p patch whose corner lies on the grid
    of ``stride`` pixels; (B,descriptor,1,1) for single patches.
    """

    def __init__(self, patch_size: int, descriptor: int = 128, width: int = 128):
        if patch_size not in LAYERS:
            raise settings.InputError(f"patch size {patch_size}: expected one of {', '.join(map(str, LAYERS))}")
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
        self.patch_size, self.descriptor = patch_size, descriptor
        self.stride = 2 ** LAYERS[patch_size].count(POOL)


# ------------------------------------------------------------------------------------------ teacher
class Backbone(nn.Module):
    """A frozen torchvision classifier without its classes: patches (N,3,p,p) -> pooled features (N,C)."""

    def __init__(self, name: str, patch_pixels: int):
        super().__init__()
        if name not in BACKBONES:
            raise settings.InputError(f"backbone={name!r}: expected one of {', '.join(BACKBONES)}")
        network = getattr(torchvision.models, name)(weights=None)
        if name == "resnet18":
            network.fc = nn.Identity()
        self.name, self.network, self.patch_pixels = name, network.requires_grad_(False).eval(), patch_pixels

    def load(self, weights: Path | None) -> None:
        """ImageNet weights from a local state dict in torchvision's naming, or else torchvision's own, online."""
        published = torchvision.models.get_model_weights(self.name).DEFAULT
        state = checkpoints.pretrained(published, weights)
        own = self.network.state_dict()
        needed = {name: tensor for name, tensor in state.items() if name in own}
        checkpoints.load_weights(self.network, needed, weights or published.url)

    def train(self, mode: bool = True):
        return super().train(False)  # frozen: batch norms keep their statistics

    @torch.no_grad()
    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        size = (self.patch_pixels, self.patch_pixels)
        enlarged = F.interpolate(patches, size, mode="bilinear", align_corners=False)
        if self.name == "resnet18":
            return self.network(enlarged).float()
        return F.relu(self.network.features(enlarged)).mean((2, 3)).float()


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
    """M patch networks that learn to say what the teacher says, from defect-free images alone.

    ``mean`` and ``std`` (d,) are the teacher's over the training images: students regress its descriptors
    normalised by them. ``calibration`` holds mean and std of error and uncertainty on defect-free validation
    images, (2,2): what makes the scores of several patch sizes comparable.
    """

    def __init__(self, nets: list[PatchNet]):
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("mean", torch.zeros(nets[0].descriptor))
        self.register_buffer("std", torch.ones(nets[0].descriptor))
        self.register_buffer("calibration", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def normalize(self, descriptors: torch.Tensor) -> torch.Tensor:
        """The teacher's descriptors (B,d,h,w) as the students' targets."""
        return (descriptors - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B,3,H,W) -> descriptors (M,B,d,h,w) on the patch network's own grid."""
        return torch.stack([net(images) for net in self.nets])


class StudentTeacher(nn.Module):
    """A teacher for each patch size and, for each category and patch size, its students."""

    def __init__(self, categories, patch_sizes, students: int, descriptor: int, widths: tuple[int, int], seed: int):
        super().__init__()
        self.teachers = nn.ModuleDict({str(p): _seeded(seed, p, descriptor, widths[0]) for p in patch_sizes})
        self.students = nn.ModuleDict({
            category: nn.ModuleDict({
                str(p): Students([_seeded(seed + 1 + k, p, descriptor, widths[1]) for k in range(students)])
                for p in patch_sizes
            })
            for category in categories
        })  # fmt: skip


def _seeded(seed: int, patch_size: int, descriptor: int, width: int) -> PatchNet:
    """A patch network initialised from a seed of its own: students that start alike would agree everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchNet(patch_size, descriptor, width)

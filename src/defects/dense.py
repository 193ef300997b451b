"""A patch network at every pixel of an image at once (Bailer et al., arXiv:1805.03096: fast dense feature extraction).

Patch by patch, neighbours repeat almost all of each other's work. Here each layer runs once over the image: a pool
that would skip positions keeps them all (stride 1), and the layers behind it reach as much further apart (dilation).
The descriptors are the same numbers, up to the order of the sums.

Border rule: the image is continued by reflection, so that every pixel is the centre of a whole patch.
"""

import torch
from torch import nn
from torch.nn import functional as F

from src import settings
from src.defects.config import STRIDES
from src.defects.model import PatchNet

TILE = 256  # side, in pixels, of the regions that bound the memory


def pad(images: torch.Tensor, patch_size: int, stride: int = 1) -> torch.Tensor:
    """Reflect images (B,C,H,W) so that patch i starts at pixel i of the result and is centred on pixel i.

    The result holds the patches of the pixels 0, stride, 2 x stride, ... and nothing more. InputError for an
    image too small to be reflected.
    """
    before = patch_size // 2
    after = [(size - 1) // stride * stride + patch_size - size - before for size in images.shape[-2:]]
    if min(images.shape[-2:]) <= max(before, *after):
        raise settings.InputError(
            f"an image of {images.shape[-1]} x {images.shape[-2]} pixels is too small for patches of {patch_size}: "
            "enlarge it, or choose a smaller patch size"
        )
    return F.pad(images, (before, after[1], before, after[0]), mode="reflect")


@torch.inference_mode()
def dense(net: PatchNet, images: torch.Tensor, stride: int = 1, tile: int = TILE) -> torch.Tensor:
    """Descriptors of the patches centred on the pixels 0, stride, 2 x stride, ... of images float32 (B,3,H,W).

    Gives (B,d,ceil(H/stride),ceil(W/stride)). ``stride`` is 1, 2, 4 or 8: what it does not skip is as exact as
    with 1. Large images are done in tiles of ``tile`` pixels a side, which changes memory and nothing else.
    """
    if stride not in STRIDES:
        raise settings.InputError(f"stride={stride}: expected 1, 2, 4 or 8")
    tile = max(stride, tile - tile % stride)  # every tile starts on the grid
    padded, reach = pad(images, net.patch_size, stride), net.patch_size - 1
    rows = []
    for y in range(0, images.shape[-2], tile):
        regions = [padded[..., y : y + tile + reach, x : x + tile + reach] for x in range(0, images.shape[-1], tile)]
        rows.append(torch.cat([_positions(net, region, stride) for region in regions], dim=3))
    return torch.cat(rows, dim=2)


def _positions(net: PatchNet, padded: torch.Tensor, stride: int) -> torch.Tensor:
    """Descriptors of every patch of ``padded`` whose corner lies on the grid of ``stride``."""
    counts = [(size - net.patch_size) // stride + 1 for size in padded.shape[-2:]]
    skipped, dilation = 1, 1  # what pools have skipped so far; how far apart neighbours are where they skip nothing
    x = padded
    for layer in net:
        if isinstance(layer, nn.MaxPool2d) and 2 * skipped <= stride:
            x, skipped = layer(x), 2 * skipped
        elif isinstance(layer, nn.MaxPool2d):
            x, dilation = F.max_pool2d(x, 2, stride=1, dilation=dilation), 2 * dilation
        elif isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, dilation=dilation)
        else:
            x = layer(x)
    skip = stride // skipped
    return x[..., ::skip, ::skip][..., : counts[0], : counts[1]]

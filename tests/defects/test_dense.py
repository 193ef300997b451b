"""A patch network at every pixel against the patches one by one, for every size, stride, tile and border."""

from functools import cache

import numpy as np
import pytest
import torch

from src import settings
from src.defects.dense import dense, pad
from src.defects.model import PatchNet

SIZES = {17: (96, 31), 33: (51, 47), 65: (35, 43)}  # patch size -> (H,W) of the images; 35 = the smallest and 2
STRIDES = (1, 2, 4, 8)


def net_of(patch_size: int) -> PatchNet:
    torch.manual_seed(patch_size)
    return PatchNet(patch_size, 6, 5).eval()


def images_of(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def one_by_one(net: PatchNet, images: torch.Tensor, positions) -> torch.Tensor:
    """Descriptors (B,N,d) of the patches cut around pixels (y,x), the border reflected by NumPy."""
    half, size = net.patch_size // 2, net.patch_size
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (half, half), (half, half)), mode="reflect"))
    result = []
    for image in padded:
        patches = torch.stack([image[:, y : y + size, x : x + size] for y, x in positions])
        result.append(torch.cat([net(part).flatten(1) for part in patches.split(256)]))
    return torch.stack(result)


@cache
def naive(patch_size: int) -> torch.Tensor:
    """Descriptors (B,d,H,W) of every pixel of ``images_of(SIZES[patch_size])``."""
    height, width = SIZES[patch_size]
    positions = [(y, x) for y in range(height) for x in range(width)]
    result = one_by_one(net_of(patch_size), images_of(height, width), positions)
    return result.transpose(1, 2).unflatten(2, (height, width))


def difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("patch_size", SIZES)
def test_equals_the_patches_one_by_one(patch_size, stride):
    result = dense(net_of(patch_size), images_of(*SIZES[patch_size]), stride)
    assert difference(result, naive(patch_size)[..., ::stride, ::stride]) < 1e-5


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("patch_size", SIZES)
def test_tiles_change_nothing(patch_size, stride):
    net, images = net_of(patch_size), images_of(*SIZES[patch_size])
    untiled = dense(net, images, stride)
    for tile in (8, 24, 40):
        assert difference(dense(net, images, stride, tile=tile), untiled) < 1e-5


@pytest.mark.parametrize("tile, stride", [(20, 8), (33, 4)])
def test_tiles_of_any_side_change_nothing(tile, stride):
    net, images = net_of(33), images_of(60, 60, 1)
    assert difference(dense(net, images, stride, tile=tile), dense(net, images, stride)) < 1e-5


@pytest.mark.parametrize("patch_size", SIZES)
def test_five_hundred_positions_of_a_larger_image(patch_size):
    """The image is larger than a tile of 128, and its border and corners are among the positions."""
    net, images = net_of(patch_size), images_of(200, 230, 1)
    rng = np.random.default_rng(1)
    positions = [(0, 0), (0, 229), (199, 0), (199, 229), *zip(*rng.integers(0, (200, 230), (496, 2)).T, strict=True)]
    ys, xs = (torch.tensor(values) for values in zip(*positions, strict=True))
    expected = one_by_one(net, images, positions)[0]
    for tile in (128, 256):
        result = dense(net, images, tile=tile)[0, :, ys, xs].T
        assert difference(result, expected) < 1e-5


def test_batch_and_memory_layout_do_not_matter():
    net, images = net_of(33), images_of(45, 50, 3)
    single = torch.cat([dense(net, image[None], 2) for image in images])
    assert difference(dense(net, images, 2), single) < 1e-5
    last = torch.channels_last
    assert difference(dense(net.to(memory_format=last), images.contiguous(memory_format=last), 2), single) < 1e-5


# ------------------------------------------------------------------------------------------ the border
def test_the_border_is_reflected():
    image = torch.arange(20 * 24, dtype=torch.float32).view(1, 1, 20, 24)
    padded = pad(image, 17)
    assert padded.shape == (1, 1, 36, 40)
    assert torch.equal(padded[..., 8:28, 8:32], image)
    assert torch.equal(padded[0, 0, 8:28, 7], image[0, 0, :, 1])  # not the border itself
    assert torch.equal(padded[0, 0, 8:28, 0], image[0, 0, :, 8])
    assert torch.equal(padded[0, 0, 35, 8:32], image[0, 0, 11])


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("height, width", [(40, 40), (41, 47), (36, 33)])
def test_padding_holds_the_patches_of_the_stride_and_nothing_more(stride, height, width):
    padded = pad(images_of(height, width), 33, stride)
    last = [(side - 1) // stride * stride for side in (height, width)]
    assert list(padded.shape[-2:]) == [side + 33 for side in last]


@pytest.mark.parametrize("patch_size", SIZES)
def test_the_smallest_image_is_half_a_patch_and_a_pixel(patch_size):
    net, half = net_of(patch_size), patch_size // 2
    assert dense(net, images_of(half + 1, half + 1)).shape == (2, 6, half + 1, half + 1)
    for height, width in ((half, half + 9), (half + 9, half)):
        with pytest.raises(settings.InputError, match=f"{width} x {height} pixels is too small.* of {patch_size}"):
            dense(net, images_of(height, width))


@pytest.mark.parametrize("stride", [0, 3, 16, -1])
def test_other_strides_are_refused(stride):
    with pytest.raises(settings.InputError, match=f"stride={stride}: expected 1, 2, 4 or 8"):
        dense(net_of(17), images_of(40, 40), stride)

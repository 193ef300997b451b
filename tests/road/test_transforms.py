"""Training views keep labels on their pixels, and vary as their names say; test images are resized and normalised."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from src.backbones import MEAN, STD
from src.road import transforms
from src.road.config import AUGMENTATIONS, RESIZING
from src.road.data import IGNORE
from src.road.transforms import TRANSFORMS, Augment, preprocess

STEP = 18  # grey levels from one label to the next in a coded image
SCALED = {"moderate": (1.0, 1.3), "heavy": (0.5, 2.0), "scale": (0.5, 2.0), "scale_jitter": (0.5, 1.5)}
TURNED = ("moderate", "heavy")
COLOURS = (transforms._JITTER, transforms._BLUR)


def coded_sample(seed: int = 0) -> dict:
    """96x128 pixels in blocks of 24x32, whose grey is STEP times the label; label 13 is the anomaly."""
    blocks = np.random.default_rng(seed).permutation(np.r_[0:14, 0:2]).reshape(4, 4).astype(np.uint8)
    mask = torch.from_numpy(blocks).repeat_interleave(24, 0).repeat_interleave(32, 1)[None]
    return {"image": tv_tensors.Image((mask * STEP).expand(3, -1, -1).clone()), "mask": tv_tensors.Mask(mask)}


def without(left_out: tuple, name: str, *sizes) -> Augment:
    augment = Augment(name, 13, *sizes)
    augment.transforms = [transform for transform in augment.transforms if transform not in left_out]
    return augment


def inside(mask: torch.Tensor) -> torch.Tensor:
    """Known pixels (H,W) whose 5x5 window holds one label: away from borders, which resizing and rotation blend."""
    window = torch.nn.functional.pad(mask[None].float(), [2] * 4, value=IGNORE)
    high, low = (sign * torch.nn.functional.max_pool2d(sign * window, 5, 1)[0] for sign in (1, -1))
    return (high == low) & (mask != IGNORE)


def grey_levels(image: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: float (3,H,W) in 0..255."""
    return (image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("image_size, crop_size", [((96, 128), (80, 112)), ((72,), None)])
def test_augmented_image_and_mask_stay_aligned(name, image_size, crop_size):
    crop_size = crop_size or ((60, 80) if name in SCALED else None)
    augment = without(COLOURS, name, image_size, crop_size)
    for seed in range(8):
        torch.manual_seed(seed)
        result = augment(coded_sample(seed))
        clear = inside(result["mask"])
        shown = (grey_levels(result["image"])[0] / STEP).round()
        assert clear.float().mean() > 0.1
        assert (shown[clear] == result["mask"][clear]).float().mean() > 0.99


@pytest.mark.parametrize("name", TRANSFORMS)
def test_augmented_form(name):
    sample = coded_sample()
    before = sample["mask"].clone(), sample["image"].clone()
    for seed in range(6):
        torch.manual_seed(seed)
        result = Augment(name, 13, (96, 128), (80, 112))(sample)
        assert result["image"].shape == (3, 80, 112) and result["image"].dtype == torch.float32
        assert result["mask"].shape == (80, 112) and result["mask"].dtype == torch.int64
        assert set(result["mask"].unique().tolist()) <= {*range(13), IGNORE}
    assert torch.equal(sample["mask"], before[0]) and torch.equal(sample["image"], before[1])


def test_every_recipe_varies_as_named():
    def masks(name, crop_size=None):
        for seed in range(12):
            torch.manual_seed(seed)
            yield without((transforms._ROTATION,), name, (96, 128), crop_size)(coded_sample())["mask"]

    plain = next(masks("none"))
    assert all(torch.equal(mask, plain) for mask in masks("none"))
    for name in ("flip", "flip_color"):
        views = list(masks(name))
        flipped = [torch.equal(mask, plain.flip(1)) for mask in views]
        assert 0 < sum(flipped) < 12
        assert sum(torch.equal(mask, plain) for mask in views) == 12 - sum(flipped)
    for name, (low, high) in SCALED.items():
        factors = [(mask != IGNORE).any(1).sum().item() / 96 for mask in masks(name, (192, 256))]  # as a whole
        third = (high - low) / 3
        assert low - 0.01 < min(factors) < low + third and high - third < max(factors) < high + 0.01


@pytest.mark.parametrize("name", TURNED)
def test_turned_halves_keep_their_border_on_that_of_the_mask(name):
    """A dark and a light half, which no jitter makes swap: told apart by colour, they are those of the mask."""
    labels = torch.full((1, 96, 128), 2, dtype=torch.uint8)
    labels[..., 64:] = 7
    shades, slopes = torch.where(labels == 2, 60, 180).to(torch.uint8).expand(3, -1, -1), []
    for seed in range(16):
        torch.manual_seed(seed)
        sample = {"image": tv_tensors.Image(shades), "mask": tv_tensors.Mask(labels)}
        result = Augment(name, 13, (96, 128), (80, 112))(sample)
        mask, grey = result["mask"], grey_levels(result["image"]).mean(0)
        assert set(mask.unique().tolist()) <= {2, 7, IGNORE}
        rows, columns = ((mask[:, 1:] - mask[:, :-1]).abs() == 5).nonzero().T
        if len(rows) > 40:  # the border is in the crop
            middle = sum(grey[mask == label].median() for label in (2, 7)) / 2
            assert torch.equal((grey > middle)[inside(mask)], (mask == 7)[inside(mask)])
            slopes.append(((columns[-1] - columns[0]) / (rows[-1] - rows[0])).item())
    assert len(slopes) > 8 and max(map(abs, slopes)) < np.tan(np.deg2rad(5)) + 0.02
    assert min(slopes) < -0.02 and max(slopes) > 0.02


def test_heavy_blurs_some_images_and_no_mask():
    blurred = []
    for seed in range(12):
        results = []
        for augment in (Augment("heavy", 13, (96, 128), (96, 128)),
                        without((transforms._BLUR,), "heavy", (96, 128), (96, 128))):  # fmt: skip
            torch.manual_seed(seed)
            results.append(augment(coded_sample()))
        assert torch.equal(results[0]["mask"], results[1]["mask"])
        blurred.append(not torch.allclose(results[0]["image"], results[1]["image"], atol=0.05))
    assert 0 < sum(blurred) < 12


@pytest.mark.parametrize("name", ["flip_color", "scale_jitter"])
def test_jitter_changes_colours_alone(name):
    results = []
    for augment in (Augment(name, 13, (96, 128), (96, 128)), without(COLOURS, name, (96, 128), (96, 128))):
        torch.manual_seed(3)
        results.append(augment(coded_sample()))
    assert torch.equal(results[0]["mask"], results[1]["mask"])
    assert not torch.allclose(results[0]["image"], results[1]["image"], atol=0.05)


def test_padding_and_anomalies_are_ignored():
    sample = coded_sample()
    result = Augment("none", 13, (48, 64), (96, 128))(sample)
    ignored = result["mask"] == IGNORE
    anomalous = (sample["mask"] == 13).sum().item() // 4
    assert ignored.sum() == 96 * 128 - 48 * 64 + anomalous
    rows, columns = (result["mask"] != IGNORE).nonzero().T
    outside = torch.ones(96, 128, dtype=torch.bool)
    outside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = False
    assert grey_levels(result["image"])[:, outside].round().eq(124).all() and outside.sum() == 96 * 128 - 48 * 64


@pytest.mark.parametrize("size, expected", [((20, 30), (20, 30)), ((12,), (12, 16)), ((48, 64), (48, 64))])
def test_preprocess_resizes_and_normalises(size, expected):
    image = torch.tensor([255, 51, 0], dtype=torch.uint8)[:, None, None].expand(3, 48, 64)
    result = preprocess(image, size)
    assert result.shape == (3, *expected) and result.dtype == torch.float32
    wanted = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]
    assert result.amax((1, 2)).tolist() == pytest.approx(wanted, abs=1e-5)
    assert result.amin((1, 2)).tolist() == pytest.approx(wanted, abs=1e-5)


def test_the_config_knows_every_recipe():
    assert set(TRANSFORMS) == set(AUGMENTATIONS)
    assert {name for name, (scale, _) in TRANSFORMS.items() if scale} == set(RESIZING)

"""Patches cut as the paper cuts them, and a distillation that learns, uses its dimensions and can be resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

from src import backbones, checkpoints, images, settings
from src.defects import model as models
from src.defects import teacher as teachers
from src.defects.config import TeacherConfig
from src.defects.patches import AugmentedPatches, image_files, train_and_val

TINY = TeacherConfig(
    epochs=4,
    batch_size=6,
    lr=3e-3,
    workers=0,
    amp=False,
    patch_size=17,
    descriptor=16,
    width=8,
    pretrained="none",
    patch_pixels=32,
    images="photographs",
    image_size=(24, 48),
    patches_per_image=8,
)


def cut(image: torch.Tensor, count: int, seed: int = 0, **changes) -> torch.Tensor:
    """``count`` patches as levels 0..255, float32 (count,3,p,p)."""
    torch.manual_seed(seed)
    patches = AugmentedPatches(replace(TINY, patches_per_image=count, **changes))(image)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbones.MEAN, backbones.STD))
    return (patches * std + mean) * 255


def ramp(height: int = 60, width: int = 80) -> torch.Tensor:
    """Red rises to the right from 0 to 255, green downwards; blue is 200. uint8 (3,H,W)."""
    right = torch.linspace(0, 255, width).expand(height, width)
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([right, down, torch.full((height, width), 200.0)]).round().to(torch.uint8)


def rise(patches: torch.Tensor, channel: int, axis: int) -> torch.Tensor:
    """Difference between the last and the first row or column of each patch, (N,)."""
    values = patches[:, channel].transpose(1, 2) if axis == 1 else patches[:, channel]
    return values[..., -1].mean(1) - values[..., 0].mean(1)


# --------------------------------------------------------------------------------------------- patches
def test_patches_are_normalised_floats_of_the_patch_size():
    for size in (17, 33):
        config = replace(TINY, patch_size=size, patches_per_image=5, image_size=(40, 50))
        patches = AugmentedPatches(config)(torch.full((3, 60, 80), 130, dtype=torch.uint8))
        assert patches.shape == (5, 3, size, size) and patches.dtype == torch.float32
    expected = (130 / 255 - torch.tensor(backbones.MEAN)) / torch.tensor(backbones.STD)
    assert any(torch.allclose(patch.mean((1, 2)), expected, atol=1e-4) for patch in patches)  # some may be grey


def test_patches_are_given_by_the_state_of_the_generator():
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    assert torch.equal(cut(image, 6, seed=1), cut(image, 6, seed=1))
    assert not torch.equal(cut(image, 6, seed=1), cut(image, 6, seed=2))
    patches = cut(image, 6)
    assert len({tuple(patch.flatten().tolist()) for patch in patches}) == 6


def test_a_tenth_of_the_patches_is_grey():
    patches = cut(torch.stack([torch.full((40, 40), v, dtype=torch.uint8) for v in (250, 20, 90)]), 3000)
    grey = (patches.amax(1) - patches.amin(1)).amax((1, 2)) < 2
    assert 0.08 < grey.float().mean() < 0.12
    assert torch.allclose(patches[grey], torch.tensor(0.299 * 250 + 0.587 * 20 + 0.114 * 90), atol=2)
    assert torch.allclose(patches[~grey].mean((0, 2, 3)), torch.tensor([250.0, 20, 90]), atol=0.5)


def test_half_of_the_patches_is_flipped_either_way():
    patches = cut(ramp(), 2000)
    coloured = patches[(patches[:, 2] > 195).flatten(1).all(1)]
    right, down = rise(coloured, 0, axis=2) > 0, rise(coloured, 1, axis=1) > 0
    for one in (right, down, right == down):
        assert 0.45 < one.float().mean() < 0.55


def test_images_are_resized_to_the_range_of_short_sides():
    """On an image of s pixels, the ramp rises by 255 * 16 / s over a patch of 17; grey patches show less of it."""
    square = ramp(60, 60)
    rises = torch.cat([rise(cut(square, 4, seed), 0, axis=2).abs().amax(0, keepdim=True) for seed in range(60)])
    assert 75 < rises.min() < 95 and 155 < rises.max() < 180  # 85 and 170
    exact = rise(cut(ramp(), 50, image_size=(34, 34)), 1, axis=1).abs()
    assert exact.median() == pytest.approx(255 * 16 / 34, rel=0.05)
    assert cut(ramp(), 1, image_size=(17, 17)).shape == (1, 3, 17, 17)


def test_the_courses_augmentation_rotates_and_keeps_colours():
    red = torch.stack([torch.full((40, 40), v, dtype=torch.uint8) for v in (255, 0, 0)])
    patches = cut(red, 200, augmentation="flip_rotate")
    middle, corner = patches[:, :, 8, 8], patches[:, 0, 0, 0]
    assert torch.allclose(middle, torch.tensor([255.0, 0, 0]), atol=1)  # none is grey
    assert 0.5 < (corner < 1).float().mean() < 1  # turned out of the patch, but not by multiples of 90 degrees
    assert (cut(red, 200)[:, 0, 0, 0] > 70).all()


def test_weights_that_would_not_be_used_are_refused(tmp_path):
    with pytest.raises(settings.InputError, match="given.pth would not be used: set pretrained=imagenet"):
        teachers.distill(TINY, tmp_path, tmp_path / "given.pth")


def test_weights_of_another_backbone_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    config = replace(TINY, backbone="squeezenet1_0", pretrained="imagenet")
    with pytest.raises(checkpoints.CheckpointError, match="resnet.pth"):
        teachers.distill(config, tmp_path / "run", tmp_path / "resnet.pth")


def test_every_tenth_image_validates():
    train, val = train_and_val([Path(f"{number}.png") for number in range(40)])
    assert [path.stem for path in val] == ["0", "10", "20", "30"] and len(train) == 36
    assert not set(train) & set(val)


def test_too_few_images_are_refused(tmp_path):
    for number in range(19):
        (tmp_path / "below").mkdir(exist_ok=True)
        (tmp_path / "below" / f"{number}.PNG").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(images.DataError, match=f"{tmp_path} holds 19 images.*at least 20"):
        image_files(tmp_path)
    (tmp_path / "19.jpg").touch()
    assert len(image_files(tmp_path)) == 20


def test_damaged_image_is_named(photographs, tmp_path):
    (photographs / "39.png").write_text("no picture")
    with pytest.raises(images.DataError, match="39.png"):
        teachers.distill(replace(TINY, batch_size=36, epochs=1), tmp_path / "run")


# ---------------------------------------------------------------------------------------------- values
class Quarters(nn.Module):
    """Stands in for a backbone: the mean colours of the quarters of a patch."""

    channels = 12

    def __init__(self, *settings_of_a_backbone):
        super().__init__()

    def forward(self, patches):
        return F.adaptive_avg_pool2d(patches, 2).flatten(1)


@pytest.mark.parametrize("compactness, weight", [("mean", 0.5), ("sum", 0.01), ("mean", 0.0)])
def test_loss_by_hand(compactness, weight):
    torch.manual_seed(0)
    model = models.Teacher(models.PatchNet(17, 3, 4), 12)
    batch = torch.randn(2, 5, 3, 17, 17)
    mean, std = torch.linspace(-1, 1, 12), torch.linspace(0.05, 3, 12)
    config = replace(TINY, compactness=compactness, compactness_weight=weight)
    value = teachers.loss(model, batch, backbone=Quarters(), mean=mean, std=std, config=config).item()
    with torch.inference_mode():
        patches = batch.reshape(10, 3, 17, 17)
        descriptors, decoded = model(patches)
    target = (Quarters()(patches) - mean) / std
    correlations = np.abs(np.corrcoef(descriptors.numpy(), rowvar=False)[np.triu_indices(3, 1)])
    redundancy = getattr(np, compactness)(correlations)
    expected = float(((decoded - target) ** 2).mean()) + weight * redundancy
    assert value == pytest.approx(expected, rel=1e-4)


def test_validation_values():
    """Of more patches than fit into one batch."""
    torch.manual_seed(0)
    model, patches = models.Teacher(models.PatchNet(17, 4, 4), 6).eval(), torch.randn(300, 3, 17, 17)
    targets = torch.randn(300, 6)
    with torch.inference_mode():
        descriptors, decoded = (values.numpy() for values in model(patches))
    variances = np.linalg.eigvalsh(np.cov(descriptors, rowvar=False))
    shares = variances / variances.sum()
    value = teachers.validate(model, patches, targets)
    assert value["distillation"] == pytest.approx(np.mean((decoded - targets.numpy()) ** 2), rel=1e-5)
    upper = np.corrcoef(descriptors, rowvar=False)[np.triu_indices(4, 1)]
    assert value["compactness"] == pytest.approx(np.abs(upper).mean(), rel=1e-4)
    assert value["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert F.mse_loss(torch.zeros(300, 6), targets) == pytest.approx(1, abs=0.1)  # the mean feature's error


# --------------------------------------------------------------------------------------------- training
@pytest.fixture
def photographs(tmp_path, monkeypatch) -> Path:
    """40 images of 56 x 64 pixels of soft or sharp patches of colour."""
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    (tmp_path / "photographs").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        colours = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        ramp = Image.Resampling.BICUBIC if number % 2 else Image.Resampling.NEAREST
        colours.resize((64, 56), ramp).save(tmp_path / "photographs" / f"{number:02d}.png")
    return tmp_path / "photographs"


def without_seconds(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_distillation_learns_and_compactness_spreads_it_over_the_dimensions(photographs, tmp_path, monkeypatch):
    """Towards features that a few steps are enough for."""
    monkeypatch.setattr(teachers, "FeatureExtractor", Quarters)
    rows = []
    for weight in (0.0, 1.0):
        config = replace(TINY, epochs=8, width=16, patches_per_image=16, compactness_weight=weight)
        net, history = teachers.distill(config, tmp_path / f"run{weight}")
        rows.append(min(history, key=lambda row: row["distillation"]))
        assert isinstance(net, models.PatchNet) and not net.training
        assert history[0]["distillation"] > rows[-1]["distillation"] < 0.9
    assert rows[1]["effective_rank"] > rows[0]["effective_rank"] + 1
    assert rows[1]["compactness"] < rows[0]["compactness"]


def test_a_killed_distillation_resumes_to_the_same_history(photographs, tmp_path, killed_at):
    config = replace(TINY, epochs=2, batch_size=12, patches_per_image=4)
    uninterrupted, expected = teachers.distill(config, tmp_path / "uninterrupted")

    calls = killed_at(teachers, 5)  # the second batch of the second epoch
    with pytest.raises(KeyboardInterrupt):
        teachers.distill(config, tmp_path / "killed")
    resumed, history = teachers.distill(config, tmp_path / "killed")
    assert without_seconds(history) == without_seconds(expected) and len(history) == 2
    assert len(calls) == 5 + 3
    states = uninterrupted.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

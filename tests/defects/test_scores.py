"""Score maps against sums over single patches, and a calibration after which normal validation images are alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from src import backbones, defects
from src.defects import scores
from src.defects.data import DefectDataset
from src.defects.layouts import NORMAL
from src.defects.model import StudentTeacher

CONFIG = defects.Config(
    image_size=40, stride=4, patch_sizes=(17,), descriptor=4, width=4, teacher_width=4, seed=0, amp=False, workers=0
)
MEAN, STD = (0.5, -1.0, 0.0, 2.0), (1.0, 2.0, 0.5, 3.0)  # of the teacher's descriptors


def model_of(*patch_sizes: int) -> StudentTeacher:
    """Untrained, with students normalised as if by some teacher's statistics."""
    model = StudentTeacher(replace(CONFIG, patch_sizes=patch_sizes), ("part",)).eval()
    for students in model.students["part"].values():
        students.mean.copy_(torch.tensor(MEAN))
        students.std.copy_(torch.tensor(STD))
    return model


# -------------------------------------------------------------------------------------------- raw maps
@pytest.mark.parametrize("patch_size, stride", [(17, 1), (17, 4), (33, 2)])
def test_raw_maps_from_single_patches(patch_size, stride):
    model, batch = model_of(patch_size), torch.randn(2, 3, 21, 26, generator=torch.Generator().manual_seed(0))
    teacher, students = model.teachers[str(patch_size)], model.students["part"][str(patch_size)]
    maps = scores.raw_maps(teacher, students, batch, stride).numpy()
    assert maps.shape == (3, 2, -(-21 // stride), -(-26 // stride))
    half = patch_size // 2
    padded = np.pad(batch.numpy(), ((0, 0), (0, 0), (half, half), (half, half)), mode="reflect")
    for b, y, x in [(0, 0, 0), (1, 3, 2), (0, maps.shape[2] - 1, maps.shape[3] - 1), (1, 1, 5), (1, 0, 3)]:
        top, left = y * stride, x * stride
        patch = torch.from_numpy(padded[b : b + 1, :, top : top + patch_size, left : left + patch_size].copy())
        with torch.inference_mode():
            target = (teacher(patch).numpy().ravel() - MEAN) / STD
            predictions = np.stack([net(patch).numpy().ravel() for net in students.nets])
        mean = predictions.mean(0)
        error, contrast = ((mean - target) ** 2).sum(), (target**2).sum()
        uncertainty = np.mean([((one - mean) ** 2).sum() for one in predictions])
        assert maps[:, b, y, x] == pytest.approx([error, uncertainty, contrast], rel=1e-4)


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("size", [(25, 33), (24, 30), (32, 31)])
def test_upsampling_is_exact_on_the_grid_and_holds_the_edge(stride, size):
    height, width = (-(-side // stride) for side in size)
    maps = torch.randn(2, 3, height, width)
    full = scores.upsample(maps, stride, size)
    assert full.shape == (2, 3, *size)
    assert torch.allclose(full[..., ::stride, ::stride], maps, atol=1e-5)
    between = full[..., 0, stride // 2 : (width - 1) * stride : stride]
    assert torch.allclose(between, (maps[..., 0, 1:] + maps[..., 0, :-1]) / 2, atol=1e-5)
    down, right = (height - 1) * stride, (width - 1) * stride
    assert torch.equal(full[..., down:, :], full[..., down : down + 1, :].expand_as(full[..., down:, :]))
    assert torch.equal(full[..., right:], full[..., right : right + 1].expand_as(full[..., right:]))


def test_upsampling_from_every_pixel_changes_nothing():
    maps = torch.randn(2, 1, 9, 7)
    assert torch.equal(scores.upsample(maps, 1, (9, 7)), maps)


def test_smoothing_is_a_gaussian_with_reflected_border():
    score = torch.randn(30, 36)
    expected = ndimage.gaussian_filter(score.double().numpy(), 17 / 8, mode="mirror", radius=round(3 * 17 / 8))
    assert scores.smooth(score, 17 / 8).numpy() == pytest.approx(expected, abs=1e-5)


# ----------------------------------------------------------------------------------------- calibration
@pytest.mark.parametrize("shape, stride, patch_size", [((40, 52), 1, 17), ((12, 15), 4, 33), ((30, 28), 2, 65)])
def test_rings_are_an_eighth_of_a_patch_wide_and_four_pixels_at_least(shape, stride, patch_size):
    result = scores.rings(shape, stride, patch_size)
    for y in range(shape[0]):
        for x in range(shape[1]):
            pixels = stride * min(y, x, shape[0] - 1 - y, shape[1] - 1 - x)
            assert result[y, x] == min(pixels // {17: 4, 33: 4, 65: 8}[patch_size], 5)


def normal_maps(model: StudentTeacher, val: DefectDataset, config) -> list[np.ndarray]:
    """Raw maps (3,h,w) of the normal images, float64, at the size of the images."""
    result = []
    for index, item in enumerate(val.items):
        pixels = backbones.normalize(val[index]["image"])[None]
        maps = scores.raw_maps(model.teachers["17"], model.students["part"]["17"], pixels, config.stride)
        result += [] if item.is_anomalous else [maps[:, 0].double().numpy()]
    return result


@pytest.fixture(params=[1, 4])
def calibrated(stripes, request):
    """(config, val with one anomalous image, model, calibration, raw maps of the normal images) at two strides."""
    config, model = replace(CONFIG, stride=request.param), model_of(17)
    val = stripes((NORMAL, "hole", NORMAL, NORMAL))
    calibration = scores.calibrate(model, "part", val, config)
    return config, val, model, calibration, normal_maps(model, val, config)


def test_z_scores_of_normal_validation_images_have_mean_0_and_std_1(calibrated):
    """On the scored positions; the anomalous image plays no part."""
    config, val, model, calibration, raw = calibrated
    values = np.concatenate([maps[:2].reshape(2, -1) for maps in raw], axis=1)
    expected = np.stack([values.mean(1), values.std(1, ddof=1)], 1)
    assert np.array(calibration["17"]["zscore"]) == pytest.approx(expected, rel=1e-4)
    maps = [scores.score_maps(model, "part", val[index]["image"][None], calibration, config)[0] for index in (0, 2, 3)]
    step = config.stride
    for name in ("error", "uncertainty"):
        result = torch.stack([result[name][::step, ::step] for result in maps]).double()
        assert (result.mean().item(), result.std().item()) == pytest.approx((0, 1), abs=1e-3)
    assert torch.equal(maps[0]["sum"], maps[0]["error"] + maps[0]["uncertainty"])


def fitted(raw: list[np.ndarray], stride: int) -> dict[str, np.ndarray]:
    """The calibration of 17 px patches by hand, and what it leaves of both logs (2,N) in which rings (N,)."""
    offset = np.concatenate([maps.reshape(3, -1) for maps in raw], 1).mean(1)
    rows, logs, rings = [], [], []
    for maps in raw:
        height, width = maps.shape[1:]
        for y in range(height):
            for x in range(width):
                error, uncertainty, contrast = np.log(maps[:, y, x] + offset)
                rings.append(min(stride * min(y, x, height - 1 - y, width - 1 - x) // 4, 5))
                rows.append([*np.eye(6)[rings[-1]], contrast, contrast**2])
                logs.append([error, uncertainty])
    rows, logs, rings = np.array(rows), np.array(logs), np.array(rings)
    used = rows.any(0)  # at stride 4 some rings have no positions
    weights = np.zeros((2, 8))
    weights[:, used] = np.linalg.lstsq(rows[:, used], logs, rcond=None)[0].T
    left = logs.T - weights @ rows.T
    spread = {ring: left[:, rings == ring].std(1, ddof=1) for ring in sorted(set(rings))}
    return {"offset": offset, "weights": weights, "left": left, "rings": rings, "spread": spread}


def test_calibration_is_a_least_squares_fit_of_both_logs(calibrated):
    config, _, _, calibration, raw = calibrated
    expected, result = fitted(raw, config.stride), calibration["17"]
    assert result["offset"] == pytest.approx(expected["offset"], rel=1e-4)
    assert np.array(result["weights"]) == pytest.approx(expected["weights"], abs=2e-2)
    for ring, spread in expected["spread"].items():
        assert np.array(result["spread"])[:, ring] == pytest.approx(spread, rel=1e-3)


def test_calibrated_scores_of_normal_validation_images_are_alike_in_every_ring(calibrated):
    """The sum of what error and uncertainty exceed the usual by, which is 0 on average at any distance."""
    config, _, _, calibration, raw = calibrated
    maps = torch.from_numpy(np.stack(raw)).float()
    result = torch.stack([scores.calibrated_map(one, calibration["17"], config.stride, 17) for one in maps])
    by_hand = fitted(raw, config.stride)
    spread = np.stack([by_hand["spread"][ring] for ring in by_hand["rings"]], 1)
    assert result.flatten().numpy() == pytest.approx((by_hand["left"] / spread).sum(0), abs=2e-3)
    for ring in by_hand["spread"]:
        assert result.flatten()[by_hand["rings"] == ring].mean().item() == pytest.approx(0, abs=1e-3)


def test_anomalous_validation_images_do_not_calibrate(calibrated):
    config, val, model, calibration, _ = calibrated
    without, given = scores.calibrate(model, "part", val.normal(), config)["17"], calibration["17"]
    assert all(np.array_equal(without[key], given[key], equal_nan=True) for key in given)


# ------------------------------------------------------------------------------------------ score maps
def test_scores_are_the_mean_over_patch_sizes(stripes):
    config = replace(CONFIG, image_size=48, patch_sizes=(17, 33))
    model, val = model_of(17, 33), stripes(size=(48, 60))
    calibration = scores.calibrate(model, "part", val, config)
    assert set(calibration) == {"17", "33"}
    image = val[1]["image"]
    result = scores.score_maps(model, "part", image[None], calibration, config)[0]
    expected = {name: np.zeros((48, 60)) for name in ("error", "uncertainty", "calibrated")}
    for size, own in calibration.items():
        pixels = backbones.normalize(image)[None]
        raw = scores.raw_maps(model.teachers[size], model.students["part"][size], pixels, 4)[:, 0]
        for name, values, (mean, std) in zip(expected, raw, own["zscore"], strict=False):
            expected[name] += scores.upsample((values - mean) / std, 4, (48, 60)).numpy() / 2
        full = scores.upsample(scores.calibrated_map(raw, own, 4, int(size)), 4, (48, 60)).numpy()
        sigma = int(size) / 8
        expected["calibrated"] += ndimage.gaussian_filter(full, sigma, mode="mirror", radius=round(3 * sigma)) / 2
    assert tuple(result) == ("error", "uncertainty", "sum", "calibrated")
    for name, values in expected.items():
        assert result[name].dtype == torch.float32 and result[name].numpy() == pytest.approx(values, abs=1e-3)
    assert torch.allclose(result["sum"], result["error"] + result["uncertainty"])
    alone = scores.score_maps(model, "part", image[None], calibration, replace(config, patch_sizes=(17,)))[0]
    assert not torch.allclose(alone["error"], result["error"])


def test_images_scored_together_are_scored_as_alone(stripes):
    model, val = model_of(17), stripes()
    calibration = scores.calibrate(model, "part", val, CONFIG)
    images = torch.stack([val[index]["image"].as_subclass(torch.Tensor) for index in range(3)])
    together = scores.score_maps(model, "part", images, calibration, CONFIG)
    for image, maps in zip(images, together, strict=True):
        (alone,) = scores.score_maps(model, "part", image[None], calibration, CONFIG)
        assert maps.keys() == alone.keys()
        assert all(torch.allclose(maps[name], alone[name], atol=1e-4) for name in maps)


def test_maps_have_the_size_the_model_works_at(stripes):
    val, model = stripes(size=(30, 36)), model_of(17)
    calibration = scores.calibrate(model, "part", val, CONFIG)
    maps = scores.score_maps(model, "part", val[0]["image"][None], calibration, CONFIG)[0]
    assert {tuple(values.shape) for values in maps.values()} == {(40, 48)}


@pytest.mark.parametrize("stride", [1, 2])
def test_a_calibration_serves_a_finer_stride(stripes, stride):
    model, val = model_of(17), stripes()
    calibration = scores.calibrate(model, "part", val, replace(CONFIG, stride=4))
    maps = scores.score_maps(model, "part", val[0]["image"][None], calibration, replace(CONFIG, stride=stride))[0]
    assert all(torch.isfinite(values).all() for values in maps.values())


def test_one_student_has_finite_scores(stripes):
    model, val = StudentTeacher(replace(CONFIG, students=1), ("part",)).eval(), stripes()
    calibration = scores.calibrate(model, "part", val, CONFIG)
    maps = scores.score_maps(model, "part", val[0]["image"][None], calibration, CONFIG)[0]
    assert all(torch.isfinite(values).all() for values in maps.values())

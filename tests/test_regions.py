"""AUPRO against the definition, threshold by threshold and region by region, and by hand; shards, bounds, memory."""

import numpy as np
import pytest
import torch

from src import metrics
from src.metrics import RegionOverlap

Images = list[tuple[np.ndarray, np.ndarray]]


def draw(kind: str = "tied", count: int = 5, seed: int = 0) -> Images:
    """float32 scores (20, 25), higher on defects, and bool masks of blobs, small and large, the first image normal."""
    rng, images = np.random.default_rng(seed), []
    for index in range(count):
        mask = rng.random((20, 25)) < 0.03 * (index > 0)
        for _ in range(index):
            row, column, height, width = rng.integers((0, 0, 1, 1), (17, 21, 5, 6))
            mask[row : row + height, column : column + width] = True
        scores = rng.standard_normal((20, 25)) + 1.2 * mask
        scores = {"tied": np.round(2 * scores), "normal": scores, "narrow": 1 + 1e-6 * scores}[kind]
        images.append((scores.astype(np.float32), mask))
    return images


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The 8-connected components of a mask, by walking from pixel to pixel."""
    left, found = {(int(row), int(column)) for row, column in np.argwhere(mask)}, []
    while left:
        front = [left.pop()]
        found.append(set(front))
        while front:
            row, column = front.pop()
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            found[-1] |= near
            front += near
    return found


def reference_curve(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """FPR over all normal pixels and mean overlap over all components, at every threshold, from (0, 0)."""
    found = [(scores, region) for scores, mask in images for region in components(mask)]
    regions = [np.array([scores[pixel] for pixel in region]) for scores, region in found]
    normal = np.concatenate([scores[~mask] for scores, mask in images])
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([scores.ravel() for scores, _ in images]))[::-1]:
        overlaps = [np.count_nonzero(region >= threshold) / len(region) for region in regions]
        fpr.append(float(np.mean(normal >= threshold)))
        pro.append(float(np.mean(overlaps)))
    return np.array(fpr), np.array(pro)


def area(fpr: np.ndarray, pro: np.ndarray, max_fpr: float) -> float:
    """Trapezoids from 0 to `max_fpr`, where the curve is interpolated, over `max_fpr`."""
    inside = fpr <= max_fpr
    x = np.append(fpr[inside], max_fpr)
    y = np.append(pro[inside], np.interp(max_fpr, fpr, pro))
    return float(np.trapezoid(y, x)) / max_fpr


def streamed(images: Images, **options: int) -> RegionOverlap:
    overlap = RegionOverlap(**options)
    for scores, mask in images:
        overlap.update(torch.from_numpy(scores), torch.from_numpy(mask))
    return overlap


def test_by_hand():
    """Regions of one and of two pixels, five normal pixels: the curve rises in three places.

    Score 9 flags the single pixel: PRO 1/2 at FPR 0. Score 7 flags half of the pair and, tied, one normal pixel:
    a line to PRO 3/4 at FPR 1/5. Score 5 flags one normal pixel: level to FPR 2/5. Then PRO 1 at FPR 2/5.
    """
    scores = np.array([[9, 0, 7, 4], [7, 5, 0, 0]], np.float32)
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)
    overlap = streamed([(scores, mask)])
    assert overlap.regions == 2
    assert overlap.compute(0.2).value == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert overlap.compute(0.1).value == pytest.approx((1 / 2 + 5 / 8) / 2)
    assert overlap.compute(0.3).value == pytest.approx((0.2 * 5 / 8 + 0.1 * 3 / 4) / 0.3)
    assert overlap.compute(1).value == pytest.approx(0.2 * 5 / 8 + 0.2 * 3 / 4 + 0.6)
    assert overlap.compute(1).error == 0
    curve = overlap.curve()
    assert curve["fpr"].tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.4, 1])
    assert curve["pro"].tolist() == pytest.approx([0, 0.5, 0.75, 0.75, 1, 1])


@pytest.mark.parametrize("max_fpr", [0.01, 0.05, 0.3, 1])
@pytest.mark.parametrize("kind", ["tied", "normal", "narrow"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_definition(kind, max_fpr, seed):
    images = draw(kind, seed=seed)
    overlap = streamed(images)
    result = overlap.compute(max_fpr)
    assert result.error == 0
    assert result.value == pytest.approx(area(*reference_curve(images), max_fpr), abs=1e-12)
    assert overlap.regions == sum(len(components(mask)) for _, mask in images) > 20


def test_every_region_weighs_the_same_and_diagonals_connect():
    """A diagonal of two pixels and a touching pair are a region each; neighbours in two images are not one."""
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = True
    mask[4, 3:5] = True
    mask[0:3, 5:8] = True
    scores = np.where(mask, 2, np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)).astype(np.float32)
    scores[0:3, 5:8] = -1  # the large region is missed, the two small ones are found
    overlap = streamed([(scores, mask), (scores[::-1].copy(), mask[::-1].copy())])
    assert overlap.regions == 6
    assert overlap.compute().value == pytest.approx(2 / 3)


@pytest.mark.parametrize("max_bins", [1 << 22, 64])
@pytest.mark.parametrize("kind", ["tied", "normal"])
def test_merging_shards_equals_one_pass(kind, max_bins):
    images = draw(kind, count=7)
    shards = [streamed(images[i::3], max_bins=max_bins) for i in range(3)]
    before = [shard.compute() for shard in shards]
    total = RegionOverlap(max_bins)
    for shard in shards:
        total.merge(shard)
    whole = streamed(images, max_bins=max_bins)
    assert total.compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert total.regions == whole.regions
    assert [shard.compute() for shard in shards] == before
    assert (whole._bits > 0) == (max_bins == 64 and kind == "normal")


@pytest.mark.parametrize("max_bins", [4, 16, 64, 256, 1024])
@pytest.mark.parametrize("kind", ["tied", "normal", "narrow"])
def test_coarsened_stays_within_its_bound_and_its_memory(kind, max_bins, monkeypatch):
    """Folding every 700 pixels, so that bins are also filled after they were coarsened."""
    monkeypatch.setattr(metrics, "_PENDING", 700)
    images = draw(kind)
    overlap = streamed(images, max_bins=max_bins)
    assert sum(map(len, overlap._pending[0] + overlap._pending[1])) < 700
    assert sum(len(tally.keys) for tally in overlap._tallies) <= max_bins
    fpr, pro = reference_curve(images)
    for max_fpr in (0.02, 0.3, 1):
        value, error = overlap.compute(max_fpr)
        assert abs(value - area(fpr, pro, max_fpr)) <= error + 1e-12
        assert error == 0 or overlap._bits > 0
    assert overlap.regions == sum(len(components(mask)) for _, mask in images)


def test_bound_is_reached_by_the_best_and_worst_orders():
    """One coarse bin of a region's two pixels and two normal ones, under one normal pixel that scores higher."""
    base = np.float32(1).view(np.int32)
    mask = np.array([[0, 0, 0, 1, 1]], bool)
    for offsets, sign in (([15, 0, 1, 7, 6], 1), ([15, 7, 6, 0, 1], -1)):
        images = [((base + np.array([offsets], np.int32)).view(np.float32), mask)]
        overlap, curve = streamed(images), reference_curve(images)
        overlap._fold()
        overlap._coarsen(3)
        for max_fpr in (0.2, 0.5, 1):
            value, error = overlap.compute(max_fpr)
            assert area(*curve, max_fpr) == pytest.approx(value + sign * error)
        assert overlap.compute(0.5).error > 0


def test_a_monotone_transformation_changes_nothing():
    images = draw("tied")
    expected = streamed(images).compute()
    for transform in (lambda x: np.exp(3 * x), lambda x: x**3 - 100, lambda x: x * np.float32(1e-42)):
        assert streamed([(transform(scores), mask) for scores, mask in images]).compute() == expected


def test_perfect_inverted_and_constant_scores():
    """Constant scores are the diagonal, whose normalised area up to max_fpr is max_fpr / 2."""
    masks = [mask for _, mask in draw()]
    for scale, expected in ((1, 1), (-1, 0), (0, 0.15)):
        result = streamed([(mask * np.float32(scale), mask) for mask in masks]).compute()
        assert result.value == pytest.approx(expected, abs=1e-12)


def test_undefined_without_regions_or_without_normal_pixels():
    scores = np.zeros((3, 4), np.float32)
    empty = RegionOverlap()
    for overlap in (empty, streamed([(scores, scores > 0)]), streamed([(scores, scores == 0)])):
        assert np.isnan(overlap.compute()).all()
        with pytest.raises(ValueError, match="hold both"):
            overlap.curve()
    assert (empty.regions, overlap.regions) == (0, 1)


@pytest.mark.parametrize("max_bins", [1 << 22, 256])
def test_curve_holds_true_operating_points(max_bins):
    images = draw("normal")
    curve = streamed(images, max_bins=max_bins).curve(points=80)
    fpr, pro = reference_curve(images)
    assert 30 < len(curve["fpr"]) <= 80
    assert (curve["fpr"][0], curve["pro"][0], curve["fpr"][-1], curve["pro"][-1]) == (0, 0, 1, 1)
    assert (np.diff(curve["fpr"]) >= 0).all() and (np.diff(curve["pro"]) >= 0).all()
    distance = np.hypot(curve["fpr"][:, None] - fpr, curve["pro"][:, None] - pro)
    assert distance.min(axis=1).max() < 1e-12


def test_wrong_input_is_refused_and_adds_nothing():
    scores, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    mask[0, 0] = True
    overlap = RegionOverlap()
    overlap.update(scores, mask)
    before = overlap.compute()
    bad = scores.clone()
    bad[1, 2] = float("nan")
    for match, error, call in (
        (r"update 2: scores\[1, 2\] is nan", ValueError, (bad, mask)),
        (r"update 3: .*\(2, 3\).*\(3, 2\)", ValueError, (scores, mask.T)),
        (r"update 4: shape \(1, 2, 3\) is not \(H, W\)", ValueError, (scores[None], mask[None])),
        (r"holds 255", ValueError, (scores, mask.int() * 255)),
        (r"float64", TypeError, (scores.double(), mask)),
    ):
        with pytest.raises(error, match=match):
            overlap.update(*call)
    assert (overlap.compute(), overlap.regions) == (before, 1)
    for max_fpr in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"max_fpr=.*\(0, 1\]"):
            overlap.compute(max_fpr)


def test_arrays_tensors_and_integer_masks_are_the_same():
    images = draw("tied")
    arrays, turned = RegionOverlap(), RegionOverlap()
    for scores, mask in images:
        arrays.update(scores, mask.astype(np.uint8))
        turned.update(torch.from_numpy(scores).T.requires_grad_(), torch.from_numpy(mask).T)
    expected = pytest.approx(streamed(images).compute(), abs=1e-12)
    assert arrays.compute() == expected
    assert turned.compute() == expected


# Two processes


def reduce_shard(rank: int, folder: str) -> RegionOverlap:
    """Join a group of two with every second image, the shards being of different resolution."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    overlap = streamed(draw("normal")[rank::2], max_bins=(256, 1 << 22)[rank])
    overlap.all_reduce()
    torch.distributed.destroy_process_group()
    return overlap


def test_all_reduce_pools_two_ranks(tmp_path):
    other = torch.multiprocessing.get_context("spawn").Process(target=reduce_shard, args=(1, str(tmp_path)))
    other.start()
    overlap = reduce_shard(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    images = draw("normal")
    value, error = overlap.compute()
    assert abs(value - area(*reference_curve(images), 0.3)) <= error < 0.1
    assert overlap.regions == sum(len(components(mask)) for _, mask in images)

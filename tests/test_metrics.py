"""Rankings against scikit-learn and by hand, certified bounds, AUPRO against its definition, IoU and intervals."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from src import metrics
from src.metrics import (
    Bounded,
    ConfusionMatrix,
    ImageHistograms,
    PixelRanking,
    RegionOverlap,
    SortedScores,
    bootstrap,
    mean_interval,
    pixel_ranking,
)
from tests import check_metrics

NAMES = ("aupr", "auroc", "fpr95", "f1_max")


def ranking(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Bounded]:
    return SortedScores(scores, labels).ranking()


def draw(kind: str, pixels: int = 4000, positives: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 scores (pixels,) of one kind and bool labels, the positives shifted upwards."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(pixels) < positives
    scores = rng.standard_normal(pixels) + 1.5 * labels
    scores = {
        "normal": scores,
        "cauchy": rng.standard_cauchy(pixels) + 3 * labels,
        "lognormal": np.exp(3 * scores),
        "tied": np.round(scores, 1),
        "integers": np.round(scores),
        "all equal": np.zeros(pixels),
        "signed zeros": np.where(scores > 1, 1.0, np.copysign(0.0, scores)),
        "subnormal": scores * 1e-42,
        "huge": scores * 5e37,
        "narrow": 1 + 1e-6 * scores,
    }[kind]
    return scores.astype(np.float32), labels


CONTINUOUS = ["normal", "cauchy", "lognormal", "subnormal", "huge"]
TIED = ["tied", "integers", "all equal", "signed zeros"]  # each score has a bin of its own


def reference(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The four numbers by scikit-learn, in float64 because it warns when a float32 sum overflows."""
    scores = scores.astype(np.float64)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-30)
    return {
        "aupr": average_precision_score(labels, scores),
        "auroc": roc_auc_score(labels, scores),
        "fpr95": fpr[tpr >= 0.95].min(),
        "f1_max": f1.max(),
    }


def streamed(scores: np.ndarray, labels: np.ndarray, chunk: int = 999) -> PixelRanking:
    stream = PixelRanking()
    for start in range(0, len(scores), chunk):
        part = slice(start, start + chunk)
        stream.update(torch.from_numpy(scores[part]), torch.from_numpy(labels[part]))
    return stream


def assert_close(result: dict[str, Bounded], truth: dict[str, float]) -> None:
    assert set(result) == set(NAMES)
    for name in NAMES:
        assert result[name].value == pytest.approx(truth[name], abs=1e-12), name


def assert_bounded(result: dict[str, Bounded], truth: dict[str, float], largest: float = 1.0) -> None:
    for name in NAMES:
        assert abs(result[name].value - truth[name]) <= result[name].error + 1e-12, name
        assert result[name].error <= largest, name


@pytest.fixture
def coarse_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bins a doubling of the score."""
    monkeypatch.setattr(pixel_ranking, "BITS", 12)
    monkeypatch.setattr(pixel_ranking, "_BINS", 8)


def test_a_stored_score_map_has_the_values_that_scikit_learn_gave(capsys, monkeypatch, tmp_path):
    assert check_metrics.main() == 0
    assert capsys.readouterr().out.count("scikit-learn") == 3
    with np.load(check_metrics.STORED) as content:
        np.savez(tmp_path / "other.npz", **{**content, "score": -content["score"]})
    monkeypatch.setattr(check_metrics.differences, "__defaults__", (tmp_path / "other.npz",))
    assert check_metrics.main() == 1


@pytest.mark.parametrize("rank", [ranking, lambda *pixels: streamed(*map(np.asarray, pixels)).compute()])
def test_ranking_by_hand(rank):
    """Scores 4 > 3 = 3 > 2 > 1 with labels 1, {0, 1}, 0, 1."""
    result = rank(torch.tensor([3.0, 1.0, 4.0, 3.0, 2.0]), torch.tensor([0, 1, 1, 1, 0]))
    assert_close(result, {"aupr": (1 + 2 / 3 + 3 / 5) / 3, "auroc": 3.5 / 6, "fpr95": 1.0, "f1_max": 3 / 4})


@pytest.mark.parametrize("kind", [*CONTINUOUS, *TIED, "narrow"])
def test_an_image_is_ranked_exactly(kind):
    scores, labels = draw(kind)
    result = ranking(torch.from_numpy(scores), torch.from_numpy(labels))
    assert_close(result, reference(scores, labels))
    assert all(result[name].error == 0 for name in NAMES)


@pytest.mark.parametrize("positives", [3, 400, 3990])
@pytest.mark.parametrize("kind", TIED)
def test_tied_scores_are_ranked_as_scikit_learn_does(kind, positives):
    scores, labels = draw(kind, positives=positives)
    result, truth = streamed(scores, labels).compute(), reference(scores, labels)
    assert_close(result, truth)
    assert_bounded(result, truth)


@pytest.mark.parametrize("positives", [3, 400, 3990])
@pytest.mark.parametrize("kind", [*CONTINUOUS, "narrow"])
def test_other_scores_stay_within_the_bound(kind, positives):
    scores, labels = draw(kind, positives=positives, seed=1)
    assert_bounded(streamed(scores, labels).compute(), reference(scores, labels))


@pytest.mark.parametrize("positives", [3, 400, 3990])
@pytest.mark.parametrize("kind", [*CONTINUOUS, *TIED, "narrow"])
def test_coarse_bins_stay_within_the_bound(kind, positives, coarse_bins):
    scores, labels = draw(kind, positives=positives, seed=2)
    assert_bounded(streamed(scores, labels).compute(), reference(scores, labels))


def test_bound_is_reached_by_the_best_and_worst_orders():
    """One bin of two positives and three negatives, below one negative: the farther end of every order is attained."""
    base = np.float32(1.0).view(np.int32)
    labels = np.array([0, 1, 1, 0, 0, 0], bool)
    reached = {name: [] for name in NAMES}
    for offsets in ([7, 7, 0, 1, 2], [0, 1, 7, 6, 5]):  # positives first, last
        scores = (base + np.array([1 << 32 - pixel_ranking.BITS, *offsets], np.int32)).view(np.float32)
        result, truth = streamed(scores, labels).compute(), reference(scores, labels)
        assert_bounded(result, truth)
        for name in NAMES:
            reached[name].append(abs(result[name].value - truth[name]))
    for name in NAMES:
        assert max(reached[name]) == pytest.approx(result[name].error), name
        assert result[name].error > 0.05


def test_bound_holds_where_many_positives_come_last():
    """In one bin, a negative scores above ten positives: average precision is 0.80 rather than 10 / 11."""
    scores = (np.float32(1.0).view(np.int32) + np.arange(11, dtype=np.int32)).view(np.float32)
    labels = np.arange(11) < 10
    result, truth = streamed(scores, labels).compute(), reference(scores, labels)
    assert result["aupr"].value == pytest.approx(10 / 11)
    assert_bounded(result, truth)


@pytest.mark.parametrize("kind", ["normal", "cauchy", "lognormal"])
def test_the_bound_is_tight_for_rare_positives(kind):
    scores, labels = draw(kind, pixels=300_000, positives=200)
    assert_bounded(streamed(scores, labels, 300_000).compute(), reference(scores, labels), largest=1e-4)


@pytest.mark.parametrize("kind", ["normal", "cauchy", "tied"])
def test_merging_shards_equals_one_pass_in_any_order(kind):
    scores, labels = draw(kind)
    shards = [streamed(scores[i::3], labels[i::3], 500) for i in range(3)]
    before = [shard.compute() for shard in shards]
    one_pass = streamed(scores, labels, 4000)
    for order in ((0, 1, 2), (2, 0, 1)):
        total = PixelRanking()
        for index in order:
            total.merge(shards[index])
        total.merge(PixelRanking())
        assert (total.positives, total.negatives) == (400, 3600)
        assert total.compute() == one_pass.compute()
        assert total.quantile(0.7) == one_pass.quantile(0.7)
    assert [shard.compute() for shard in shards] == before


def test_chunks_and_slices_do_not_matter(monkeypatch):
    scores, labels = draw("cauchy")
    expected = streamed(scores, labels, 4000).compute()
    monkeypatch.setattr(pixel_ranking, "_SLICE", 64)
    for chunk in (77, 4000):
        assert streamed(scores, labels, chunk).compute() == expected


def test_counts_beyond_32_bits_do_not_overflow():
    """2**40 copies of a three-pixel stream rank like the stream itself."""
    stream = streamed(np.array([1, 2, 2], np.float32), np.array([0, 1, 0], bool))
    expected = {name: bounded.value for name, bounded in stream.compute().items()}
    for _ in range(40):
        stream.merge(stream)
    assert (stream.negatives, stream.positives) == (2**41, 2**40)
    assert_close(stream.compute(), expected)


def test_counts_are_widened_while_pixels_are_added(monkeypatch):
    scores, labels = draw("tied")
    monkeypatch.setattr(pixel_ranking, "_LARGEST_COUNT", 1500)
    stream = streamed(scores, labels, 1000)
    assert stream._counts.dtype == torch.int64
    assert_close(stream.compute(), reference(scores, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_rank_as_their_float32_values(dtype):
    scores, labels = draw("normal")
    narrow = torch.from_numpy(scores).to(dtype)
    truth = reference(narrow.float().numpy(), labels)
    assert_close(ranking(narrow, torch.from_numpy(labels)), truth)
    stream = PixelRanking()
    stream.update(narrow, torch.from_numpy(labels))
    assert_close(stream.compute(), truth)


def test_any_shape_stride_and_gradient():
    scores, labels = draw("normal")
    expected = ranking(torch.from_numpy(scores), torch.from_numpy(labels))
    turned = torch.from_numpy(scores).reshape(50, 80).T.requires_grad_()
    assert ranking(turned, torch.from_numpy(labels).reshape(50, 80).T) == expected
    assert ranking(turned, torch.from_numpy(labels).reshape(50, 80).T.long()) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -float("nan")])
def test_scores_that_are_not_finite_are_named(value):
    stream = PixelRanking()
    stream.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    scores = torch.zeros(2, 3)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=r"update 2: scores\[1, 2\] is -?(nan|inf)"):
        stream.update(scores, torch.zeros(2, 3, dtype=torch.bool))
    assert stream.negatives == 6


@pytest.mark.parametrize("kind", ["normal", "tied", "signed zeros", "huge", "subnormal"])
def test_a_sorted_image_adds_what_its_pixels_do(kind):
    by_pixel, by_image = PixelRanking(), PixelRanking()
    for seed, positives in enumerate((400, 0, 4000)):
        scores, labels = map(torch.from_numpy, draw(kind, 4000, positives, seed))
        image = SortedScores(scores, labels)
        by_pixel.update(scores, labels)
        by_image.add(image)
        threshold = scores[7].item()
        called = scores >= threshold
        assert image.reaching(threshold) == [int((called & ~labels).sum()), int((called & labels).sum())]
    assert by_image.compute() == by_pixel.compute() and by_image.base_rate == by_pixel.base_rate
    assert all(np.array_equal(curve, by_pixel.curves()[name]) for name, curve in by_image.curves().items())


def test_wrong_input_is_refused():
    labels = torch.tensor([True, False])
    with pytest.raises(TypeError, match=r"float64; cast them"):
        ranking(torch.zeros(2, dtype=torch.float64), labels)
    with pytest.raises(TypeError, match=r"int64"):
        ranking(torch.zeros(2, dtype=torch.int64), labels)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        ranking(torch.zeros(3), labels)
    with pytest.raises(ValueError, match=r"is_anomaly holds 255"):
        ranking(torch.zeros(2), torch.tensor([0, 255]))


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_a_missing_class_gives_nan(labels):
    labels = torch.tensor(labels, dtype=torch.bool)
    stream = PixelRanking()
    stream.update(torch.ones(len(labels)), labels)
    for result in (stream.compute(), ranking(torch.ones(len(labels)), labels)):
        assert all(np.isnan(result[name].value) and np.isnan(result[name].error) for name in NAMES)
    with pytest.raises(ValueError, match="hold both"):
        stream.curves()


def test_curves_hold_true_operating_points():
    scores, labels = draw("cauchy")
    stream = streamed(scores, labels)
    curves = stream.curves(points=50)
    assert 20 < len(curves["thresholds"]) <= 53
    flagged = scores >= curves["thresholds"][:, None]
    true_positives = (flagged & labels).sum(1)
    assert curves["recall"] == pytest.approx(true_positives / 400)
    assert curves["fpr"] == pytest.approx((flagged & ~labels).sum(1) / 3600)
    assert curves["precision"] == pytest.approx(np.r_[1, true_positives[1:] / flagged[1:].sum(1)])
    best = np.max(2 * true_positives / (flagged.sum(1) + 400))
    assert best == pytest.approx(stream.compute()["f1_max"].value)


@pytest.mark.parametrize("kind", ["normal", "huge", "all equal", "lognormal"])
def test_base_rate_and_quantiles_of_the_negatives(kind):
    scores, labels = draw(kind)
    stream = streamed(scores, labels)
    assert stream.base_rate == 0.1
    assert np.isnan(PixelRanking().base_rate)
    for q in (0, 0.3, 0.95, 1):
        smallest = np.quantile(scores[~labels], q, method="inverted_cdf")
        assert smallest <= stream.quantile(q) <= smallest + np.abs(smallest) * 2.0 ** (9 - pixel_ranking.BITS) + 1e-42
    with pytest.raises(ValueError, match=r"quantile\(1.5\) of 3600"):
        stream.quantile(1.5)


# Regions


Images = list[tuple[np.ndarray, np.ndarray]]


def draw_images(kind: str = "tied", count: int = 5, seed: int = 0) -> Images:
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
    left, regions = {(int(row), int(column)) for row, column in np.argwhere(mask)}, []
    while left:
        front = [left.pop()]
        regions.append(set(front))
        while front:
            row, column = front.pop()
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            regions[-1] |= near
            front += near
    return regions


def reference_curve(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """FPR over all normal pixels and mean overlap over all components, at every threshold, from (0, 0)."""
    regions = [np.array([scores[pixel] for pixel in region]) for scores, mask in images for region in components(mask)]
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


def covered(images: Images) -> RegionOverlap:
    overlap = RegionOverlap()
    for scores, mask in images:
        overlap.update(torch.from_numpy(scores), torch.from_numpy(mask))
    return overlap


def test_region_overlap_by_hand():
    """Regions of one and of two pixels, five normal pixels: the curve rises in three places.

    Score 9 flags the single pixel: PRO 1/2 at FPR 0. Score 7 flags half of the pair and, tied, one normal pixel:
    a line to PRO 3/4 at FPR 1/5. Score 5 flags one normal pixel: level to FPR 2/5. Then PRO 1 at FPR 2/5.
    """
    scores = np.array([[9, 0, 7, 4], [7, 5, 0, 0]], np.float32)
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0]], bool)
    overlap = covered([(scores, mask)])
    assert overlap.regions == 2
    assert overlap.compute(0.2).value == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert overlap.compute(0.1).value == pytest.approx((1 / 2 + 5 / 8) / 2)
    assert overlap.compute(0.3).value == pytest.approx((0.2 * 5 / 8 + 0.1 * 3 / 4) / 0.3)
    assert overlap.compute(1).value == pytest.approx(0.2 * 5 / 8 + 0.2 * 3 / 4 + 0.6)
    curve = overlap.curve()
    assert curve["fpr"].tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.4, 1])
    assert curve["pro"].tolist() == pytest.approx([0, 0.5, 0.75, 0.75, 1, 1])


@pytest.mark.parametrize("kind", ["tied", "normal", "narrow"])
@pytest.mark.parametrize("seed", [0, 1])
def test_region_overlap_equals_the_definition(kind, seed):
    images = draw_images(kind, seed=seed)
    overlap, (fpr, pro) = covered(images), reference_curve(images)
    for max_fpr in (0.01, 0.05, 0.3, 1):
        value, error = overlap.compute(max_fpr)
        assert abs(value - area(fpr, pro, max_fpr)) <= (1e-12 if kind == "tied" else error + 1e-12)
    assert overlap.regions == sum(len(components(mask)) for _, mask in images) > 20


@pytest.mark.parametrize("kind", ["tied", "normal", "narrow"])
def test_region_overlap_of_coarse_bins_stays_within_its_bound(kind, coarse_bins):
    images = draw_images(kind)
    overlap, (fpr, pro) = covered(images), reference_curve(images)
    for max_fpr in (0.02, 0.3, 1):
        value, error = overlap.compute(max_fpr)
        assert abs(value - area(fpr, pro, max_fpr)) <= error + 1e-12


def test_every_region_weighs_the_same_and_diagonals_connect():
    """A diagonal of two pixels and a touching pair are a region each; neighbours in two images are not one."""
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = True
    mask[4, 3:5] = True
    mask[0:3, 5:8] = True
    scores = np.where(mask, 2, np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)).astype(np.float32)
    scores[0:3, 5:8] = -1  # the large region is missed, the two small ones are found
    overlap = covered([(scores, mask), (scores[::-1].copy(), mask[::-1].copy())])
    assert overlap.regions == 6
    assert overlap.compute().value == pytest.approx(2 / 3)


def test_merging_region_overlaps_equals_one_pass():
    images, total = draw_images("normal", count=7), RegionOverlap()
    for start in (2, 0, 1):
        total.merge(covered(images[start::3]))
    assert total.compute() == pytest.approx(covered(images).compute(), abs=1e-12)
    assert total.regions == covered(images).regions


def test_region_overlap_bound_is_reached_by_the_best_and_worst_orders():
    """One bin of a region's two pixels and two normal ones, under one normal pixel that scores higher."""
    base = np.float32(1).view(np.int32)
    mask = np.array([[0, 0, 0, 1, 1]], bool)
    for max_fpr in (0.2, 0.5, 1):
        distances = []
        for offsets in ([0, 1, 7, 6], [7, 6, 0, 1]):
            scores = (base + np.array([[1 << 32 - pixel_ranking.BITS, *offsets]], np.int32)).view(np.float32)
            value, error = covered([(scores, mask)]).compute(max_fpr)
            distances.append(abs(area(*reference_curve([(scores, mask)]), max_fpr) - value))
        assert max(distances) == pytest.approx(error)


def test_perfect_inverted_and_constant_scores():
    """Constant scores are the diagonal, whose normalised area up to max_fpr is max_fpr / 2."""
    masks = [mask for _, mask in draw_images()]
    for scale, expected in ((1, 1), (-1, 0), (0, 0.15)):
        result = covered([(mask * np.float32(scale), mask) for mask in masks]).compute()
        assert result.value == pytest.approx(expected, abs=1e-12)


def test_region_overlap_is_undefined_without_regions_or_without_normal_pixels():
    scores = np.zeros((3, 4), np.float32)
    empty = RegionOverlap()
    for overlap in (empty, covered([(scores, scores > 0)]), covered([(scores, scores == 0)])):
        assert np.isnan(overlap.compute()).all()
        with pytest.raises(ValueError, match="hold both"):
            overlap.curve()
    assert (empty.regions, overlap.regions) == (0, 1)


def test_region_overlap_curve_holds_true_operating_points():
    images = draw_images("normal")
    curve = covered(images).curve(points=80)
    fpr, pro = reference_curve(images)
    assert 30 < len(curve["fpr"]) <= 80
    assert (curve["fpr"][0], curve["pro"][0], curve["fpr"][-1], curve["pro"][-1]) == (0, 0, 1, 1)
    assert (np.diff(curve["fpr"]) >= 0).all() and (np.diff(curve["pro"]) >= 0).all()
    distance = np.hypot(curve["fpr"][:, None] - fpr, curve["pro"][:, None] - pro)
    assert distance.min(axis=1).max() < 1e-12


def test_wrong_images_are_refused_and_add_nothing():
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
    images = draw_images("tied")
    arrays, turned = RegionOverlap(), RegionOverlap()
    for scores, mask in images:
        arrays.update(scores, mask.astype(np.uint8))
        turned.update(torch.from_numpy(scores).T.requires_grad_(), torch.from_numpy(mask).T)
    expected = pytest.approx(covered(images).compute(), abs=1e-12)
    assert arrays.compute() == expected
    assert turned.compute() == expected


# Closed-set segmentation


def test_confusion_matrix_by_hand():
    """Class 2 is predicted but never true; class 3 is neither: both are NaN and outside the mean."""
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([[0, 0, 1], [2, 3, 1]]), torch.tensor([[0, 0, 0], [0, 255, 1]]))
    assert confusion.matrix.tolist() == [[2, 1, 1, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    result = confusion.compute()
    assert result["iou"][:2] == [2 / 4, 1 / 2] and np.isnan(result["iou"][2:]).all()
    assert result["miou"] == 0.5
    assert result["pixel_accuracy"] == 3 / 5


def test_confusion_matrix_is_one_over_the_split():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(0, 5, (2, 6, 8, 8), generator=generator)
    whole, first, second = (ConfusionMatrix(5, ignore=4) for _ in range(3))
    whole.update(prediction, target)
    for shard, part in ((first, slice(0, 2)), (second, slice(2, 6))):
        shard.update(prediction[part], target[part])
    first.matrix += second.matrix
    first.all_reduce()  # a single process: nothing changes
    pairs = [[((target == t) & (prediction == p)).sum().item() for p in range(5)] for t in range(4)]
    assert first.matrix.tolist() == whole.matrix.tolist() == pairs + [[0] * 5]


@pytest.mark.parametrize("bad", [-1, 3, 254])
def test_confusion_matrix_names_a_label_out_of_range(bad):
    good = torch.zeros(2, dtype=torch.int64)
    wrong = torch.tensor([0, bad])
    with pytest.raises(ValueError, match=f"target holds the label {bad}"):
        ConfusionMatrix(3).update(good, wrong)
    with pytest.raises(ValueError, match=f"prediction holds the label {bad}"):
        ConfusionMatrix(3).update(wrong, good)
    with pytest.raises(ValueError, match="differ"):
        ConfusionMatrix(3).update(good, good[:1])


def test_empty_confusion_matrix_is_nan():
    result = ConfusionMatrix(2).compute()
    assert np.isnan([result["miou"], result["pixel_accuracy"], *result["iou"]]).all()


# Intervals over images


def resampled_values(images: list, statistic, resamples: int = 200) -> np.ndarray:
    """The statistic of each resample, the copies added one by one."""
    weights = np.random.default_rng(3).multinomial(len(images), np.full(len(images), 1 / len(images)), resamples)
    copies = ([image for image, n in zip(images, row, strict=True) for _ in range(n)] for row in weights)
    return np.array([statistic(resample) for resample in copies])


def test_bootstrap_of_miou_equals_brute_force():
    per_image = np.random.default_rng(0).integers(0, 30, (7, 3, 3))
    expected = resampled_values(list(per_image), lambda copies: metrics.mean_iou(sum(copies)))
    low, high = bootstrap(per_image, metrics.mean_iou, resamples=200, seed=3, level=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, [0.1, 0.9])))
    assert low < high


def test_bootstrap_of_a_mean_has_the_standard_error():
    values = np.random.default_rng(0).standard_normal(400)
    per_image = np.stack([values, np.ones(400)], axis=1)
    low, high = bootstrap(per_image, lambda totals: totals[:, 0] / totals[:, 1], resamples=4000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


@pytest.mark.parametrize(("held", "defined"), [(4, True), (2, False)])
def test_bootstrap_leaves_out_resamples_without_a_value(held, defined):
    """Of 40 images, `held` have a value: a resample lacks one with chance (1 - held / 40)**40, 1.5 % or 13 %."""
    has_value = np.arange(40) < held
    per_image = np.stack([np.random.default_rng(0).standard_normal(40) * has_value, has_value], axis=1)

    def mean(totals: np.ndarray) -> np.ndarray:
        sums, counts = totals.T
        return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)

    values = resampled_values(list(per_image), lambda copies: mean(sum(copies)[None])[0], resamples=400)
    missing = np.isnan(values).mean()
    assert missing > 0 and (missing <= 0.05) == defined
    interval = bootstrap(per_image, mean, resamples=400, seed=3)
    expected = np.nanquantile(values, [0.025, 0.975]) if defined else [np.nan, np.nan]
    assert interval == pytest.approx(tuple(expected), nan_ok=True)


@pytest.mark.parametrize("kind", ["normal", "tied", "all equal"])
def test_metrics_from_counts_are_those_of_each_resample(kind):
    drawn = [draw(kind, 500, positives, seed=positives) for positives in (0, 30, 120)]
    distinct = np.unique(np.concatenate([scores for scores, _ in drawn]))
    counts = np.zeros((3, len(distinct), 2))
    for rows, (scores, labels) in zip(counts, drawn, strict=True):
        np.add.at(rows, (np.searchsorted(distinct, scores), labels.astype(int)), 1)
    for name in ("aupr", "auroc"):
        values = metrics.metric_from_counts(name, counts)
        assert values.shape == (3,) and np.isnan(values[0])
        for value, pixels in list(zip(values, drawn, strict=True))[1:]:
            assert value == pytest.approx(reference(*pixels)[name], abs=1e-12)


def test_bootstrap_without_any_value_is_nan():
    assert np.isnan(bootstrap(np.zeros((3, 5, 2)), partial(metrics.metric_from_counts, "aupr"), resamples=20)).all()


def test_histograms_give_the_aupr_of_any_resample():
    images = [draw("normal", 3000, positives, seed=positives) for positives in (0, 60, 300, 500)]
    histograms = ImageHistograms()
    for scores, labels in images:
        histograms.add(SortedScores(torch.from_numpy(scores), torch.from_numpy(labels)))
    counts = histograms.counts()
    assert counts.sum(axis=1).tolist() == [[3000 - labels.sum(), labels.sum()] for _, labels in images]
    statistic = partial(metrics.metric_from_counts, "aupr")
    pooled = [np.concatenate(parts) for parts in zip(*images, strict=True)]
    assert statistic(counts.sum(axis=0)) == pytest.approx(reference(*pooled)["aupr"], abs=2e-3)

    def pooled_aupr(copies: list) -> float:
        scores, labels = (np.concatenate(parts) for parts in zip(*copies, strict=True))
        return average_precision_score(labels, scores)

    expected = np.quantile(resampled_values(images, pooled_aupr, resamples=100), [0.025, 0.975])
    assert bootstrap(counts, statistic, resamples=100, seed=3) == pytest.approx(tuple(expected), abs=2e-3)


@pytest.mark.parametrize("count", [200, 2000])
def test_the_interval_of_a_mean_narrows_with_the_number_of_values(count):
    correct = torch.arange(count) % 10 < 7
    low, high = mean_interval(correct)
    assert low < 0.7 < high and high - low == pytest.approx(2 * 1.96 * (0.21 / count) ** 0.5, rel=0.15)
    assert mean_interval(3.0 * correct - 1) == pytest.approx([3 * low - 1, 3 * high - 1])


def test_the_interval_of_equal_values_has_no_width():
    assert mean_interval(torch.ones(50, dtype=torch.bool)) == (1, 1)
    assert mean_interval([0.0] * 50) == (0, 0)


# Two processes


def reduce_shard(rank: int, folder: str) -> ConfusionMatrix:
    """Join a group of two with three pixels of its own."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    confusion = ConfusionMatrix(2)
    confusion.update(torch.full((3,), rank), torch.zeros(3, dtype=torch.int64))
    confusion.all_reduce()
    torch.distributed.destroy_process_group()
    return confusion


def test_all_reduce_pools_two_ranks(tmp_path):
    other = torch.multiprocessing.get_context("spawn").Process(target=reduce_shard, args=(1, str(tmp_path)))
    other.start()
    confusion = reduce_shard(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    assert confusion.matrix.tolist() == [[3, 3], [0, 0]]

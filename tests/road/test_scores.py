"""Anomaly scores against hand-computed numbers and slow, literal numpy references."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from src.road import scores

# Three pixels of three classes: sure, even, and torn between two.
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 3.0, 3.0]]).T.reshape(1, 3, 1, 3)


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def blocky_prediction(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random class indices in blocks of 5 pixels, with single-pixel noise on a twentieth of them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 5, (batch, -(-height // 5), -(-width // 5)), generator=generator)
    blocks = coarse.repeat_interleave(5, 1).repeat_interleave(5, 2)[:, :height, :width].clone()
    noise = torch.rand(blocks.shape, generator=generator) < 0.05
    blocks[noise] = torch.randint(0, 5, (int(noise.sum()),), generator=generator)
    return blocks


def statistics(mean: list[float], std: list[float]) -> dict[str, torch.Tensor]:
    return {"mean": torch.tensor(mean), "std": torch.tensor(std), "count": torch.full((len(mean),), 1000)}


# --- the four simple scores ---------------------------------------------------------------------------------


def test_simple_scores_by_hand():
    others = math.exp(-2) + math.exp(-2), 2.0, 1 + math.exp(-4)
    sums = 1 + others[0], 1 + others[1], 1 + others[2]
    expected = {
        "msp": [others[0] / sums[0], 2 / 3, others[2] / sums[2]],
        "max_logit": [-2.0, -1.0, -3.0],
        "entropy": [
            math.log(sums[0]) + 4 * math.exp(-2) / sums[0],
            math.log(3),
            math.log(sums[2]) + 4 * math.exp(-4) / sums[2],
        ],
        "energy": [-2 - math.log(sums[0]), -1 - math.log(3), -3 - math.log(sums[2])],
    }
    assert list(scores.SCORES) == list(expected)
    for name, values in expected.items():
        result = scores.SCORES[name](LOGITS)
        assert result.shape == (1, 1, 3) and result.dtype == torch.float32
        torch.testing.assert_close(result.flatten(), torch.tensor(values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", scores.SCORES)
def test_an_unsure_pixel_scores_higher_than_a_sure_one(name):
    sure, unsure = torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.5, 0.4, 0.3])
    score = scores.SCORES[name](torch.stack((sure, unsure), dim=1).reshape(1, 3, 1, 2)).flatten()
    assert score[1] > score[0]


def test_confident_pixels_keep_their_order():
    gaps = torch.arange(10.0, 80.0, 0.5)
    logits = torch.stack((gaps, torch.zeros_like(gaps), torch.zeros_like(gaps) - 1)).reshape(1, 3, 1, -1)
    for score in (scores.msp(logits).flatten(), scores.entropy(logits).flatten()):
        assert (score.diff() < 0).all() and score[-1] > 0
    assert (1 - logits.softmax(1).amax(1) == 0).any(), "the direct formula is expected to saturate here"
    exact = torch.special.expit(-gaps.double() + math.log(1 + math.exp(-1)))
    torch.testing.assert_close(scores.msp(logits).flatten().double(), exact, rtol=1e-5, atol=0)
    probabilities = torch.stack((exact / (1 + math.exp(-1)), exact / (1 + math.e)))
    exact_entropy = torch.special.entr(probabilities).sum(0) - (1 - exact) * torch.log1p(-exact)
    torch.testing.assert_close(scores.entropy(logits).flatten().double(), exact_entropy, rtol=1e-5, atol=0)


def test_which_scores_ignore_a_constant_added_to_a_pixels_logits():
    logits, shift = random_logits(2, 5, 6, 7), random_logits(2, 1, 6, 7, seed=1)
    moved = logits + shift
    for score in (scores.msp, scores.entropy):
        torch.testing.assert_close(score(moved), score(logits), rtol=1e-4, atol=1e-6)
    for score in (scores.max_logit, scores.energy):
        torch.testing.assert_close(score(moved), score(logits) - shift[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_computed_in_float32(dtype):
    logits = random_logits(1, 4, 8, 8).to(dtype)
    given = statistics([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.5, 3.0])
    names = (*scores.SCORES, "sml_raw", "sml")
    maps, reference = (scores.score_maps(x, given, names) for x in (logits, logits.float()))
    for name in names:
        assert maps[name].dtype == torch.float32
        torch.testing.assert_close(maps[name], reference[name], rtol=0, atol=0)


# --- class statistics ---------------------------------------------------------------------------------------


def numpy_statistics(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    array = logits.double().numpy()
    maximum, prediction = array.max(1), array.argmax(1)
    groups = [maximum[prediction == c] for c in range(array.shape[1])]
    return tuple(np.array([f(g) for g in groups]) for f in (np.mean, np.std, len))


def check_statistics(result: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
    mean, std, count = numpy_statistics(logits)
    np.testing.assert_allclose(result["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(result["std"], std, rtol=1e-6)
    np.testing.assert_array_equal(result["count"], count)


def accumulate(*batches: torch.Tensor) -> scores.ClassStatistics:
    accumulator = scores.ClassStatistics(batches[0].shape[1])
    for batch in batches:
        accumulator.update(batch)
    return accumulator


def test_streamed_statistics_equal_numpy_in_one_shot():
    logits = random_logits(6, 4, 20, 30) + 1000  # the offset defeats a naive sum of squares in float32
    check_statistics(accumulate(*logits.split((1, 3, 2))).compute(), logits)


def class_logits(*values_per_class: list[float] | torch.Tensor) -> torch.Tensor:
    """(1, C, 1, N) logits of which class c wins the given pixels with exactly the given values."""
    logits = torch.full((len(values_per_class), sum(map(len, values_per_class))), -100.0)
    start = 0
    for index, values in enumerate(values_per_class):
        logits[index, start : start + len(values)] = torch.as_tensor(values)
        start += len(values)
    return logits[None, :, None]


def test_classes_without_usable_statistics_take_those_of_all_pixels():
    plenty = scores.MIN_PIXELS
    good = torch.linspace(0, 10, plenty)
    almost_constant = torch.full((plenty,), 7.1)
    almost_constant[::2] = almost_constant[0].nextafter(torch.tensor(8.0))
    logits = class_logits(good, [], [7.1] * plenty, [1.0, 2.0], almost_constant)
    result = accumulate(logits).compute()
    pooled = logits.amax(1).double()
    assert result["count"].tolist() == [plenty, 0, plenty, 2, plenty]
    for index in (1, 2, 3, 4):
        assert result["mean"][index].item() == pytest.approx(pooled.mean().item(), rel=1e-6)
        assert result["std"][index].item() == pytest.approx(pooled.std(correction=0).item(), rel=1e-6)
    assert result["mean"][0].item() == pytest.approx(5.0)
    assert result["std"][0].item() == pytest.approx(good.double().std(correction=0).item())


def test_statistics_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="in 0 pixels"):
        scores.ClassStatistics(3).compute()
    with pytest.raises(ValueError, match="in 400 pixels"):
        accumulate(torch.full((1, 3, 20, 20), 0.3)).compute()
    for broken in (math.nan, math.inf):
        logits = random_logits(1, 3, 20, 20)
        logits[0, 1, 4, 5] = broken
        with pytest.raises(ValueError, match="in 400 pixels"):
            accumulate(logits).compute()
    with pytest.raises(ValueError, match="4 classes"):
        scores.ClassStatistics(3).update(random_logits(1, 4, 2, 2))


def test_statistics_are_stored_as_plain_tensors(tmp_path):
    result = accumulate(random_logits(2, 4, 20, 30)).compute()
    torch.save(result, tmp_path / "statistics.pt")
    loaded = torch.load(tmp_path / "statistics.pt", weights_only=True)
    assert list(loaded) == ["mean", "std", "count"]
    assert all(torch.equal(loaded[key], result[key]) for key in result)


# --- standardized max logits --------------------------------------------------------------------------------


def test_standardized_max_logits_by_hand():
    given = statistics([1.0, 0.0, 5.0], [0.5, 1.0, 4.0])
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.5, 0.0], [0.0, 0.0, 1.0]]).T.reshape(1, 3, 1, 3)
    expected = torch.tensor([-(2 - 1) / 0.5, -(1.5 - 0) / 1, -(1 - 5) / 4])
    torch.testing.assert_close(scores.standardized_max_logits(logits, given).flatten(), expected)


def test_standardizing_gives_each_class_mean_zero_and_variance_one():
    logits = random_logits(2, 4, 40, 40)
    score = scores.standardized_max_logits(logits, accumulate(logits).compute())
    for index in range(4):
        group = score[logits.argmax(1) == index]
        assert abs(group.mean()) < 1e-4 and abs(group.std(correction=0) - 1) < 1e-4


def test_statistics_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="2 classes"):
        scores.standardized_max_logits(random_logits(1, 3, 4, 4), statistics([0.0, 0.0], [1.0, 1.0]))


# --- boundary suppression -----------------------------------------------------------------------------------

CROSS = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
SQUARE = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def neighbours(array: np.ndarray, row: int, column: int, offsets: list[tuple[int, int]]) -> list:
    height, width = array.shape
    places = [(row + i, column + j) for i, j in offsets]
    return [array[i, j] for i, j in places if 0 <= i < height and 0 <= j < width]


def slow_boundaries(prediction: np.ndarray) -> np.ndarray:
    boundary = np.zeros(prediction.shape, bool)
    for row, column in np.ndindex(*prediction.shape):
        highest = max(neighbours(prediction, row, column, CROSS))
        boundary[row, column] = highest != min(neighbours(prediction, row, column, SQUARE))
    return boundary


def slow_suppression(score: np.ndarray, prediction: np.ndarray, radii: tuple[int, ...]) -> np.ndarray:
    height, width = score.shape
    edge = np.argwhere(slow_boundaries(prediction))
    for radius in radii:
        region = np.zeros(score.shape, bool)
        for row, column in np.ndindex(height, width):
            distances = np.abs(edge - (row, column)).sum(1)
            region[row, column] = len(edge) > 0 and distances.min() <= radius
        repaired = score.copy()
        for row, column in np.argwhere(region):
            rows, columns = np.clip((row - 1, row, row + 1), 0, height - 1), column + np.array((-1, 0, 1))
            window = np.ix_(rows, np.clip(columns, 0, width - 1))
            if not region[window].all():
                repaired[row, column] = score[window][~region[window]].mean()
        score = repaired
    return score


def test_boundaries_by_hand():
    prediction = torch.zeros(1, 5, 5, dtype=torch.int64)
    prediction[0, 2, 2] = 1  # higher than its surroundings: the diagonals are no boundary
    cross, square = torch.zeros(2, 5, 5, dtype=torch.bool)
    cross[2, 1:4] = cross[1:4, 2] = True
    assert torch.equal(scores.find_boundaries(prediction)[0], cross)
    square[1:4, 1:4] = True  # lower than its surroundings: they are
    assert torch.equal(scores.find_boundaries(1 - prediction)[0], square)


def test_boundaries_equal_the_slow_reference_and_grey_morphology():
    prediction = torch.randint(0, 4, (2, 9, 11), generator=torch.Generator().manual_seed(3))
    prediction = torch.cat((prediction, blocky_prediction(2, 9, 11)))
    for image, result in zip(prediction.numpy(), scores.find_boundaries(prediction).numpy(), strict=True):
        np.testing.assert_array_equal(result, slow_boundaries(image))
        cross = ndimage.generate_binary_structure(2, 1)
        dilated = ndimage.grey_dilation(image, footprint=cross, mode="nearest")
        eroded = ndimage.grey_erosion(image, footprint=np.ones((3, 3)), mode="nearest")
        np.testing.assert_array_equal(result, dilated != eroded)


@pytest.mark.parametrize("index", [0, 3, 255])
def test_a_constant_prediction_has_no_boundary(index):
    prediction = torch.full((1, 6, 8), index)
    assert not scores.find_boundaries(prediction).any()
    score = random_logits(1, 6, 8)
    assert torch.equal(scores.suppress_boundaries(score, prediction), score)


def test_suppression_by_hand():
    prediction = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    score = torch.tensor([[[1.0, 2.0, 3.0, 90.0, 70.0, 6.0, 7.0, 8.0]]])
    once = scores.suppress_boundaries(score, prediction, (0,))
    assert once.flatten().tolist() == [1, 2, 3, 3, 6, 6, 7, 8]
    twice = scores.suppress_boundaries(score, prediction, (1, 0))
    assert twice.flatten().tolist() == [1, 2, 2, 2, 7, 7, 7, 8]
    wide = scores.suppress_boundaries(score, prediction, (4,))  # nothing but boundary: all stay
    assert torch.equal(wide, score)


@pytest.mark.parametrize("radii", [(3, 2, 1, 0), (2, 1, 0), (0,), ()])
@pytest.mark.parametrize("size", [(14, 17), (1, 9), (7, 1)])
def test_suppression_equals_the_slow_reference(radii, size):
    prediction, score = blocky_prediction(2, *size, seed=2), random_logits(2, *size)
    result = scores.suppress_boundaries(score, prediction, radii)
    for index in range(2):
        expected = slow_suppression(score[index].double().numpy(), prediction[index].numpy(), radii)
        np.testing.assert_allclose(result[index], expected, rtol=1e-5, atol=1e-5)


def test_suppression_radii_default_to_the_published_ones():
    prediction, score = blocky_prediction(1, 30, 30).div(2, rounding_mode="floor"), random_logits(1, 30, 30)
    default = scores.suppress_boundaries(score, prediction)
    assert torch.equal(default, scores.suppress_boundaries(score, prediction, (3, 2, 1, 0)))
    assert not torch.equal(default, scores.suppress_boundaries(score, prediction, (2, 1, 0)))


def test_suppression_reads_nothing_from_the_boundary():
    score = random_logits(1, 15, 15)
    prediction = (torch.arange(15) // 8).expand(1, 15, 15)  # one vertical boundary
    boundary = scores.find_boundaries(prediction)
    spoilt = score.masked_fill(boundary, math.inf)
    expected = scores.suppress_boundaries(score, prediction)
    assert torch.equal(scores.suppress_boundaries(spoilt, prediction), expected)


def test_suppression_refuses_maps_of_different_shape():
    with pytest.raises(ValueError, match="prediction"):
        scores.suppress_boundaries(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))


# --- dilated smoothing --------------------------------------------------------------------------------------


def slow_smoothing(score: np.ndarray, kernel: int, sigma: float, dilation: int) -> np.ndarray:
    half = kernel // 2
    grid = np.arange(-half, half + 1)
    weights = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(score, half * dilation, mode="edge")
    smoothed = np.zeros_like(score)
    for row, column in np.ndindex(*score.shape):
        rows, columns = row + dilation * np.arange(kernel), column + dilation * np.arange(kernel)
        smoothed[row, column] = (padded[np.ix_(rows, columns)] * weights).sum()
    return smoothed


@pytest.mark.parametrize("options", [(7, 1.0, 6), (7, 1.0, 1), (5, 0.7, 2), (1, 1.0, 3)])
def test_smoothing_equals_the_slow_reference(options):
    score = random_logits(2, 12, 9)
    result = scores.dilated_smoothing(score, *options)
    for index in range(2):
        expected = slow_smoothing(score[index].double().numpy(), *options)
        np.testing.assert_allclose(result[index], expected, rtol=1e-5, atol=1e-5)


def test_smoothing_defaults_are_the_published_ones():
    impulse = torch.zeros(1, 45, 45)
    impulse[0, 22, 22] = 1
    response = scores.dilated_smoothing(impulse)[0]
    rows, columns = response.nonzero(as_tuple=True)
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == list(range(4, 41, 6))
    assert response.sum().item() == pytest.approx(1, abs=1e-6)
    assert (response[22, 28] / response[22, 22]).item() == pytest.approx(math.exp(-0.5), rel=1e-5)


def test_smoothing_keeps_a_constant_and_refuses_an_even_kernel():
    constant = torch.full((1, 5, 6), 2.5)
    torch.testing.assert_close(scores.dilated_smoothing(constant), constant)
    with pytest.raises(ValueError, match="odd"):
        scores.dilated_smoothing(torch.zeros(1, 5, 5), kernel=6)


# --- everything together ------------------------------------------------------------------------------------


def test_radii_and_dilation_scale_with_the_image_height():
    heights = (1024, 900, 720, 360, 96, 40)
    assert [scores.scaled_radii(h)[0] for h in heights] == [3, 3, 2, 1, 0, 0]
    assert [scores.scaled_dilation(h) for h in heights] == [6, 5, 4, 2, 1, 1]
    assert scores.scaled_radii(2048) == (6, 5, 4, 3, 2, 1, 0)


@pytest.mark.parametrize("height, scale, radii, dilation", [
    (24, False, (3, 2, 1, 0), 6), (384, True, (1, 0), 2), (24, True, (0,), 1),
])  # fmt: skip
def test_sml_is_its_three_stages_in_order(height, scale, radii, dilation):
    logits, given = random_logits(2, 4, height, 20), statistics([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.5, 3.0])
    raw = scores.standardized_max_logits(logits, given)
    suppressed = scores.suppress_boundaries(raw, logits.argmax(1), radii)
    assert torch.equal(scores.sml(logits, given, suppress=False, smooth=False, scale=scale), raw)
    assert torch.equal(scores.sml(logits, given, smooth=False, scale=scale), suppressed)
    smoothed = scores.dilated_smoothing(suppressed, dilation=dilation)
    assert torch.equal(scores.sml(logits, given, scale=scale), smoothed)
    only_smoothed = scores.dilated_smoothing(raw, dilation=dilation)
    assert torch.equal(scores.sml(logits, given, suppress=False, scale=scale), only_smoothed)


def test_score_maps_names_its_maps_and_its_errors():
    logits, given = random_logits(2, 4, 12, 10), statistics([1.0] * 4, [2.0] * 4)
    assert list(scores.score_maps(logits)) == list(scores.SCORES)
    maps = scores.score_maps(logits, given, ("sml", "msp", "sml_raw"))
    assert list(maps) == ["sml", "msp", "sml_raw"]
    assert torch.equal(maps["sml"], scores.sml(logits, given))
    assert torch.equal(maps["sml_raw"], scores.standardized_max_logits(logits, given))
    assert all(score.shape == (2, 12, 10) for score in maps.values())
    for name in ("sml", "sml_raw"):
        with pytest.raises(ValueError, match="class statistics"):
            scores.score_maps(logits, names=(name,))
    outlier = random_logits(2, 12, 10)
    assert scores.score_maps(logits, names=("outlier", "msp"), outlier=outlier)["outlier"] is outlier
    for name in ("outlier", "combined"):
        with pytest.raises(ValueError, match=f"'{name}'.*outlier head.*outlier_epochs"):
            scores.score_maps(logits, given, (name,))
    with pytest.raises(ValueError, match="tails"):
        scores.score_maps(logits, given, ("combined",), outlier)
    tail = torch.linspace(-4, 4, len(scores.TAIL_SHARES)).tolist()
    combined = scores.score_maps(logits, None, ("combined",), outlier, {"outlier": tail, "energy": tail})["combined"]
    expected = torch.maximum(scores.rarity(outlier, tail), scores.rarity(-logits.logsumexp(1), tail))
    torch.testing.assert_close(combined, expected)
    with pytest.raises(ValueError, match="nonsense"):
        scores.score_maps(logits, given, ("nonsense",))


def test_rarity_is_minus_the_log_of_the_share_that_scores_as_high():
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    tail = normal.quantile(1 - torch.tensor(scores.TAIL_SHARES)).tolist()
    levels = torch.linspace(-3, 3.5, 50)
    share = torch.stack([(normal >= level).float().mean() for level in levels])
    torch.testing.assert_close(scores.rarity(levels, tail), -share.log(), atol=0.1, rtol=0.02)
    assert scores.rarity(torch.tensor([-99.0]), tail) == 0
    far = scores.rarity(torch.tensor([8.0, 9.0, 10.0]), tail)
    assert far[0] > -np.log(1e-4) and far[2] - far[1] == pytest.approx(float(far[1] - far[0]), rel=1e-4)
    flat = scores.rarity(torch.tensor([-1.0, 0.0, 1.0]), [0.0] * len(scores.TAIL_SHARES))
    assert flat.isfinite().all() and flat[2] > flat[1] >= flat[0] == 0


def test_images_of_a_batch_do_not_mix_and_inputs_do_not_change():
    names = (*scores.SCORES, "sml_raw", "sml")
    logits, given = random_logits(2, 4, 30, 26), statistics([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.5, 3.0])
    before = logits.clone()
    together = scores.score_maps(logits, given, names)
    assert torch.equal(logits, before)
    for index in range(2):
        alone = scores.score_maps(logits[index : index + 1], given, names)
        for name in names:
            torch.testing.assert_close(together[name][index], alone[name][0], rtol=1e-6, atol=1e-6)


def test_stages_leave_their_inputs_alone_and_accept_a_graph():
    logits = random_logits(1, 4, 16, 16).requires_grad_()
    score = scores.standardized_max_logits(logits, statistics([1.0] * 4, [2.0] * 4))
    prediction = logits.argmax(1)
    before = score.detach().clone(), prediction.clone()
    scores.dilated_smoothing(scores.suppress_boundaries(score, prediction))
    scores.score_maps(logits)
    assert torch.equal(score, before[0]) and torch.equal(prediction, before[1])

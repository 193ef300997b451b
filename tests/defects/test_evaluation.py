"""Thresholds by brute force, every metric by scikit-learn, and the records that the report is made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)
from torch.nn import functional as F

from src import defects
from src.defects import evaluation, fitting
from src.defects.layouts import NORMAL
from src.defects.scores import HEADLINE


# ------------------------------------------------------------------------------------------- threshold
def best_f1(scores, truth) -> float:
    return max(f1_score(truth, scores >= value) for value in np.unique(scores))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("digits", [1, 6])
def test_threshold_with_anomalies_has_the_best_f1(seed, digits):
    """With one digit, many scores are equal."""
    rng = np.random.default_rng(seed)
    truth = np.arange(40) < rng.integers(3, 20)
    scores = np.round(rng.normal(0, 1, 40) + 1.5 * truth, digits)
    result = evaluation.choose_threshold(scores.tolist(), truth.tolist())
    assert f1_score(truth, scores >= result["value"]) == pytest.approx(best_f1(scores, truth))
    assert result["rule"] == "best F1 on the validation images"
    assert result["few_alarms"] == evaluation.choose_threshold(scores[~truth], [False] * (~truth).sum())["value"]
    assert scores.min() < result["value"] < scores.max() and not np.isin(result["value"], scores)
    assert threshold_is_midway(result["value"], scores)


def threshold_is_midway(value: float, scores: np.ndarray) -> bool:
    below, above = scores[scores < value].max(), scores[scores > value].min()
    return abs(value - (below + above) / 2) < 1e-9


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 40, 100, 1000])
def test_threshold_without_anomalies_lets_95_per_cent_pass(count, digits):
    scores = np.round(np.random.default_rng(count).normal(5, 2, count), digits)
    result = evaluation.choose_threshold(scores.tolist(), [False] * count)
    share = (scores >= result["value"]).mean()
    assert result["few_alarms"] == result["value"]
    assert share <= 0.05 and result["value"] > scores.min()
    assert "95%" in result["rule"] and "normal" in result["rule"]
    if digits:
        assert share >= 0.05 - 1 / count


@pytest.mark.parametrize("score", [-9.0, 0.5, 9.0])
def test_one_anomaly_alone_chooses_no_threshold(score):
    """Wherever it scores: below all normal images it would call them all anomalous."""
    normal = np.random.default_rng(0).normal(0, 1, 40)
    expected = evaluation.choose_threshold(normal, [False] * 40)
    assert evaluation.choose_threshold([*normal, score], [False] * 40 + [True]) == expected


@pytest.mark.parametrize("scores, truth", [([1, 2, 3, 4], [1, 1, 1, 0]), ([1, 1, 1, 1], [1, 1, 1, 0])])
def test_threshold_is_never_the_minimum(scores, truth):
    assert evaluation.choose_threshold(scores, truth)["value"] > min(scores)


def test_threshold_needs_normal_images():
    with pytest.raises(ValueError, match="scores of normal images"):
        evaluation.choose_threshold([1.0, 2.0], [True, True])


def test_threshold_on_a_split(stripes, tmp_path):
    val = stripes((NORMAL, NORMAL, "hole", "hole"))
    trained = fitting.finish(CONFIG, defects.build_model(CONFIG), {"mini": val}, {}, tmp_path / "tiny.pth")
    items = list(evaluation.scored(trained, "mini", val))
    expected = evaluation.choose_threshold([item.score() for item in items], [False, False, True, True])
    assert trained.extras["thresholds"]["mini"] == expected
    assert [item.name for item in items] == [f"stripes0/{number}.png" for number in range(4)]
    assert [item.defect for item in items] == [NORMAL, NORMAL, "hole", "hole"]
    assert [int(item.mask.sum()) for item in items] == [0, 0, 42, 42] and items[0].image.shape == (3, 40, 52)
    assert items[1].score() == items[1].maps["calibrated"].max() and items[1].score("sum") == items[1].maps["sum"].max()


# --------------------------------------------------------------------------------------------- metrics
CONFIG = defects.Config(image_size=40, patch_sizes=(17,), descriptor=4, width=4, teacher_width=4, amp=False, workers=0)
KINDS = (*[NORMAL] * 4, "hole", "hole", "hole", "stain", "stain", "crack")
SCORES = ("error", "uncertainty", "sum", HEADLINE)
WITHOUT_MASK = (6, 9)  # a hole and the only crack
THRESHOLD = {"value": 3.0, "rule": "by hand"}


def items_of(size=(14, 12), mask_size=None, seed: int = 1) -> list[evaluation.Scored]:
    """Ten scored images; anomalous ones have two regions each, where scores are higher on the whole."""
    rng, items = np.random.default_rng(seed), []
    mask_size = mask_size or size
    for number, kind in enumerate(KINDS):
        mask = np.zeros(mask_size, dtype=bool)
        if kind != NORMAL:
            mask[2:5, 1 : 3 + number % 3] = mask[8:10, 4:11] = True
        lift = F.interpolate(torch.from_numpy(mask)[None, None].float(), size)[0, 0]
        spread = rng.uniform(0.6, 1.4)
        maps = {}
        for name in SCORES:
            noise = torch.from_numpy(rng.normal(0, spread, size).round(1)).float()
            maps[name] = torch.round(noise + lift, decimals=1)  # equal scores in every bit
        known = None if number in WITHOUT_MASK else torch.from_numpy(mask)
        picture = torch.arange(3 * mask.size).view(3, *mask_size).to(torch.uint8)
        items.append(evaluation.Scored(f"{kind}/{number}.png", kind, picture, known, maps))
    return items


def aupro(scores: np.ndarray, masks: np.ndarray) -> float:
    """Area up to a false positive rate of 0.3: a ROC curve in which every region weighs 1."""
    weights = np.ones(masks.shape)
    for mask, weight in zip(masks, weights, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for label in range(1, count + 1):
            weight[labels == label] = 1 / (labels == label).sum()
    fpr, tpr, _ = roc_curve(masks.ravel(), scores.ravel(), sample_weight=weights.ravel(), drop_intermediate=False)
    inside = fpr < 0.3
    return np.trapezoid(np.r_[tpr[inside], np.interp(0.3, fpr, tpr)], np.r_[fpr[inside], 0.3]) / 0.3


def ranked(items: list, name: str) -> dict[str, float]:
    """Expected metrics of one score, where maps and masks have one size."""
    truth = [item.is_anomalous for item in items]
    known = [item for item in items if item.mask is not None]
    scores, masks = (np.stack(values) for values in zip(*((i.maps[name], i.mask) for i in known), strict=True))
    return {
        "image_auroc": roc_auc_score(truth, [item.maps[name].max() for item in items]),
        "pixel_auroc": roc_auc_score(masks.ravel(), scores.ravel()),
        "pixel_aupr": average_precision_score(masks.ravel(), scores.ravel()),
        "aupro": aupro(scores, masks),
    }


@pytest.fixture(scope="module")
def items() -> list[evaluation.Scored]:
    return items_of()


@pytest.fixture(scope="module")
def metrics(items) -> dict:
    return evaluation.Meter.of(items).compute(THRESHOLD)


@pytest.mark.parametrize("name", SCORES)
def test_rankings_are_those_of_scikit_learn(items, metrics, name):
    assert metrics["scores"][name] == pytest.approx(ranked(items, name), abs=1e-4)
    assert name != HEADLINE or metrics["scores"][name].items() <= metrics.items()


def test_decisions_are_those_of_the_threshold(items, metrics):
    truth = np.array([item.is_anomalous for item in items])
    called = np.array([item.maps[HEADLINE].max() >= 3 for item in items])
    assert 0 < called.sum() < 10 and any(item.score() == 3 for item in items)
    expected = {
        "precision": precision_score(truth, called),
        "recall": recall_score(truth, called),
        "f1": f1_score(truth, called),
        "false_positive_rate": called[~truth].mean(),
        "images": 10,
        "normal": 4,
    }
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert metrics["threshold"] == THRESHOLD


def test_images_without_mask_count_for_image_metrics_alone(items, metrics):
    known = [item for item in items if item.mask is not None]
    without = evaluation.Meter.of(known).compute(THRESHOLD)
    assert without["images"] == 8 and metrics["images"] == 10
    for key in ("pixel_auroc", "pixel_aupr", "aupro", "pixel_base_rate"):
        assert without[key] == metrics[key]
    assert metrics["pixel_base_rate"] == pytest.approx(np.mean([item.mask.float().mean() for item in known]))
    assert without["image_auroc"] != metrics["image_auroc"]


def test_each_kind_of_defect_stands_against_all_normal_images(items, metrics):
    assert list(metrics["per_defect"]) == ["crack", "hole", "stain"]
    for kind, result in metrics["per_defect"].items():
        chosen = [item for item in items if item.defect in (kind, NORMAL)]
        own = [item for item in chosen if item.is_anomalous]
        truth = [item.is_anomalous for item in chosen]
        assert result["images"] == len(own)
        assert result["image_auroc"] == pytest.approx(roc_auc_score(truth, [item.score() for item in chosen]))
        assert result["recall"] == pytest.approx(np.mean([item.score() >= 3 for item in own]))
        expected = ranked(chosen, HEADLINE)["aupro"] if kind != "crack" else float("nan")
        assert result["aupro"] == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_maps_are_measured_at_the_masks_own_size():
    items = items_of((7, 6), (15, 12))
    result = evaluation.Meter.of(items).compute(THRESHOLD)
    for item in items:
        for name, values in item.maps.items():
            resized = F.interpolate(values[None, None], (15, 12), mode="bilinear", align_corners=False)
            item.maps[name] = resized[0, 0]
    expected = ranked(items, HEADLINE)
    for key in ("pixel_auroc", "pixel_aupr", "aupro"):
        assert result[key] == pytest.approx(expected[key], abs=1e-3)


def test_a_split_of_normal_images_has_no_rankings(items):
    meter = evaluation.Meter.of(items[:4])
    result = meter.compute(THRESHOLD)
    undefined = ("image_auroc", "pixel_auroc", "pixel_aupr", "aupro", "precision", "recall", "f1")
    assert all(np.isnan(result[key]) for key in undefined)
    assert np.isnan(result["image_auroc_interval"]).all() and result["per_defect"] == {}
    assert result["images"] == result["normal"] == 4 and result["pixel_base_rate"] == 0
    assert result["false_positive_rate"] >= 0
    assert meter.caveats() == ["no image is anomalous, so AUROC, AUPR, AUPRO, precision, recall and F1 are undefined"]


def test_a_split_of_anomalous_images_has_recall_and_pixel_metrics(items):
    meter = evaluation.Meter.of(items[4:])
    result = meter.compute(THRESHOLD)
    assert all(np.isnan(result[key]) for key in ("image_auroc", "precision", "f1", "false_positive_rate"))
    assert 0 < result["recall"] < 1 and 0 < result["aupro"] < 1
    assert meter.caveats() == ["no image is normal, so image AUROC, precision, F1 and false positives are undefined"]


def test_one_anomalous_image_is_placed_among_the_normal_ones_and_nothing_more(items):
    assert evaluation.Meter.of(items).caveats() == []
    meter = evaluation.Meter.of(items[:5])
    above = sum(item.score() >= items[4].score() for item in items[:4])
    assert meter.caveats() == [
        "one image alone is anomalous, too few to measure image AUROC, precision, recall and F1: "
        f"{above} of 4 normal images score as high as it does"
    ]
    result = meter.compute(THRESHOLD)
    assert all(np.isnan(result[key]) for key in ("image_auroc", "precision", "recall", "f1"))
    assert np.isnan(result["image_auroc_interval"]).all() and np.isnan(result["scores"]["sum"]["image_auroc"])
    assert 0 < result["aupro"] < 1 and result["false_positive_rate"] >= 0


def test_recall_is_also_given_at_the_threshold_of_few_false_alarms(items):
    truth, scores = np.array([(item.is_anomalous, item.score()) for item in items]).T
    truth = truth.astype(bool)
    value = float(np.median(scores))
    result = evaluation.Meter.of(items).compute(THRESHOLD | {"few_alarms": value})["few_alarms"]
    assert result["threshold"] == value and result["recall"] == recall_score(truth, scores >= value)
    assert result["false_positive_rate"] == (scores[~truth] >= value).mean()
    low, high = result["recall_interval"]
    assert 0 <= low < result["recall"] < high <= 1
    assert "few_alarms" not in evaluation.Meter.of(items).compute(THRESHOLD)  # of a checkpoint without it


def test_a_split_without_masks_has_no_pixel_metrics(items):
    meter = evaluation.Meter.of([replace(item, mask=None) for item in items])
    result = meter.compute(THRESHOLD)
    assert meter.caveats() == ["no anomalous image has a mask, so the pixel metrics are undefined"]
    assert all(np.isnan(result[key]) for key in ("pixel_auroc", "pixel_aupr", "aupro", "pixel_base_rate"))
    assert 0 < result["image_auroc"] < 1


@pytest.mark.parametrize("digits", [0, 6])
def test_interval_contains_the_value(digits):
    """And is that of a bootstrap of whole images."""
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 3 == 0
    scores = np.round(rng.normal(0, 1, 60) + truth, digits)
    low, high = evaluation.auroc_interval(truth, scores)
    value = evaluation.auroc(truth, scores)
    assert value == pytest.approx(roc_auc_score(truth, scores))
    assert 0.5 < low < value < high < 1 and high - low > 0.1
    resampled = []
    for chosen in rng.integers(0, 60, (2000, 60)):
        gap = scores[chosen][truth[chosen]][:, None] - scores[chosen][~truth[chosen]]
        resampled.append((gap > 0).mean() + (gap == 0).mean() / 2)
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))), abs=0.03)


def test_headline_of_several_categories_is_their_mean(items, metrics):
    other = evaluation.Meter.of(items_of(seed=4)).compute({"value": 2.0, "rule": "by hand"})
    result = evaluation.mean_over_categories({"a": metrics, "b": other})
    assert result["score"] == HEADLINE and result["categories"] == {"a": metrics, "b": other}
    for key in ("image_auroc", "pixel_auroc", "pixel_aupr", "aupro", "precision", "recall", "f1"):
        assert result[key] == pytest.approx((metrics[key] + other[key]) / 2)
    assert "threshold" not in result and "images" not in result
    assert evaluation.mean_over_categories({"a": metrics}) == {"score": HEADLINE, **metrics}

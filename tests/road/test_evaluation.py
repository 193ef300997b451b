"""Every number of an evaluation recomputed with scikit-learn from hand-made logits that a stub model gives."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)
from torch import nn

from src import plots, road, settings, system
from src.backbones import MEAN, STD
from src.road import data, evaluation, figures, prediction, scores

SIZE = (24, 32)
CONFIG = road.Config(image_size=(6, 8))  # the logits come at the masks' size whatever the model sees
ANOMALY = data.StreetHazards.anomaly
RANKING_ERROR = 1e-4  # of a pooled ranking, whose bins are narrow but not single scores
AREAS = (40, 9, 100, 60, 25, 80, 15, 50)  # anomalous pixels of the images that hold any


def grey_index(images: torch.Tensor) -> torch.Tensor:
    return ((images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255 / 8).round().long()


class Backbone(dict):
    """Named modules that can be called, as torchvision's backbones are."""

    def __call__(self, images):
        return {"out": self["index"](images)}


class Stub(nn.Module):
    """Gives ``logits[i]`` (C,H,W) for any image of the even grey 8 * i."""

    def __init__(self, logits: np.ndarray):
        super().__init__()
        self.logits, self.backbone = torch.from_numpy(logits), Backbone(index=grey_index)

    def classifier(self, index):
        return self.logits[index.cpu()].to(index.device)


class Head:
    """Gives ``outliers[i]`` (H,W) for that image."""

    names = ("index",)

    def __init__(self, outliers: np.ndarray):
        self.outliers = torch.from_numpy(outliers)

    def __call__(self, features):
        return self.outliers[features["index"].cpu()].to(features["index"].device)


def stub(logits: np.ndarray, outliers: np.ndarray) -> Stub:
    """A ``Stub`` with the head that scores outliers."""
    model = Stub(logits)
    model.outlier_head = Head(outliers)
    return model


def trained_of(model: nn.Module, calibration: dict | None = None) -> system.Trained:
    extras = {"calibration": calibration} if calibration else {}
    return system.Trained(CONFIG, model, extras, Path(), CONFIG)


def metrics_of(model: nn.Module, dataset, calibration: dict | None = None) -> dict:
    return evaluation.evaluate_split(trained_of(model, calibration), dataset).metrics


def write_pair(image_path, mask_path, index: int, mask: np.ndarray) -> None:
    for path, array in ((image_path, np.full((*mask.shape, 3), 8 * index, np.uint8)), (mask_path, mask)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def street_hazards(root, masks: np.ndarray, split: str = "test", first: int = 0) -> data.StreetHazards:
    """A split of label maps (N,H,W), 0..13; image i has the grey of the stub's logits ``first + i``."""
    part, folder = data.StreetHazards.folders[split]
    for index, mask in enumerate(masks):
        image, label = (root / part / kind / folder / "t5" / f"{index}.png" for kind in ("images", "annotations"))
        write_pair(image, label, first + index, np.uint8(mask + 1))
    return data.StreetHazards(root, split)


def calibration_for(classes: int) -> dict:
    mean, std = torch.linspace(-1, 2, classes), torch.linspace(0.5, 2, classes)
    count = torch.full((classes,), 1000)
    thresholds = dict.fromkeys(evaluation.SCORE_NAMES, 0.0)
    statistics = {"mean": mean, "std": std, "count": count}
    return {"statistics": {"train": statistics, "val": statistics | {"mean": mean + 5}}, "thresholds": thresholds}


TAIL = np.linspace(-2, 3, len(scores.TAIL_SHARES)) ** 3 / 4


class Case:
    """Ten images, of which the last two hold no anomaly; true classes win more often than not."""

    def __init__(self, root):
        rng = np.random.default_rng(0)
        self.masks = rng.choice([0, 1, 3, 7, 9], (10, *SIZE))
        for index, area in enumerate(AREAS):
            self.masks[index].reshape(-1)[rng.choice(24 * 32, area, replace=False)] = ANOMALY
        self.logits = rng.normal(0, 1.5, (10, 13, *SIZE)).astype(np.float32)
        truth = np.where(self.masks == ANOMALY, 0, self.masks)[:, None]
        boost = np.where(self.masks == ANOMALY, 0, 2)[:, None].astype(np.float32)
        np.put_along_axis(self.logits, truth, np.take_along_axis(self.logits, truth, 1) + boost, 1)
        self.outliers = rng.normal(0, 1, (10, *SIZE)).astype(np.float32) + np.float32(self.masks == ANOMALY)
        self.dataset = street_hazards(root, self.masks)
        self.calibration = calibration_for(13)
        self.calibration["tails"] = {name: TAIL.tolist() for name in evaluation.SCORE_NAMES}
        self.calibration["tails"]["energy"] = (TAIL - 4).tolist()
        thresholds = {name: float(np.quantile(self.score(name), 0.9)) for name in evaluation.SCORE_NAMES}
        self.calibration["thresholds"] = thresholds
        self.model = stub(self.logits, self.outliers)
        self.trained = trained_of(self.model, self.calibration)
        self.result = evaluation.evaluate_split(self.trained, self.dataset)
        self.metrics = self.result.metrics

    def score(self, name: str) -> np.ndarray:
        """Scores (N,H,W), by hand but for the smoothed ones."""
        x, best = self.logits.astype(np.float64), self.logits.max(1)
        exponentials = np.exp(x - x.max(1, keepdims=True))
        p = exponentials / exponentials.sum(1, keepdims=True)
        chosen = self.calibration["statistics"]["train"]
        mean, std = (chosen[key].numpy()[self.logits.argmax(1)] for key in ("mean", "std"))
        return {
            "msp": lambda: 1 - p.max(1),
            "max_logit": lambda: -best,
            "entropy": lambda: -(p * np.log(p)).sum(1),
            "energy": lambda: -np.log(np.exp(x).sum(1)),
            "sml_raw": lambda: -(best - mean) / std,
            "sml": lambda: scores.sml(torch.from_numpy(self.logits), chosen).numpy(),
            "outlier": lambda: self.outliers,
            "combined": lambda: np.maximum(rarity(self.outliers), rarity(4 - np.log(np.exp(x).sum(1)))),
        }[name]()


def rarity(score: np.ndarray) -> np.ndarray:
    """Of a score whose tail is ``TAIL``, by hand: minus the log of its share, extended on its last line."""
    heights = -np.log(scores.TAIL_SHARES)
    slope = (heights[-1] - heights[-2]) / (TAIL[-1] - TAIL[-2])
    return np.where(score > TAIL[-1], heights[-1] + slope * (score - TAIL[-1]), np.interp(score, TAIL, heights))


OF_HEAD = ("outlier", "combined")  # the scores that need the outlier head


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return Case(tmp_path_factory.mktemp("hand_made"))


def reference(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    fpr, tpr, _ = roc_curve(truth, score, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(truth, score)
    return {
        "aupr": average_precision_score(truth, score),
        "auroc": roc_auc_score(truth, score),
        "fpr95": fpr[tpr >= 0.95].min(),
        "f1_max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
    }


def assert_equal(metrics: dict, expected: dict, error: float = 1e-6) -> None:
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=error)


# --------------------------------------------------------------------------------------- segmentation
def test_closed_set_numbers(case):
    known = case.masks != ANOMALY
    truth, guess = case.masks[known], case.logits.argmax(1)[known]
    classes = np.unique(truth)
    iou = jaccard_score(truth, guess, labels=classes, average=None)
    assert_equal(case.metrics, {"miou": iou.mean(), "pixel_accuracy": (truth == guess).mean(), "images": 10})
    named = {case.dataset.classes[index].name: value for index, value in zip(classes, iou, strict=True)}
    assert_equal(case.metrics["per_class"], named)
    assert len(case.metrics["per_class"]) == 13 and np.isnan(case.metrics["per_class"]["car"])


def test_void_counts_nowhere(camvid_root):
    dataset = data.CamVid(camvid_root, "val")
    masks = np.stack([dataset.read_mask(index) for index in range(2)])
    logits = np.random.default_rng(1).normal(size=(1, 11, *masks.shape[1:])).astype(np.float32)
    model = Stub(logits)
    model.backbone = lambda images: {"out": torch.zeros(len(images), dtype=torch.long)}
    metrics = metrics_of(model, dataset, None)
    known, guess = masks != data.IGNORE, np.broadcast_to(logits.argmax(1), masks.shape)
    assert 0 < known.mean() < 1
    iou = jaccard_score(masks[known], guess[known], average=None, labels=np.unique(masks[known]))
    assert_equal(metrics, {"miou": iou.mean(), "pixel_accuracy": (masks == guess)[known].mean()})
    assert "protocols" not in metrics and "aupr" not in metrics


# ----------------------------------------------------------------------------------------- protocols
@pytest.mark.parametrize("name", evaluation.SCORE_NAMES)
def test_pooled_numbers(case, name):
    score, truth = case.score(name), case.masks == ANOMALY
    assert_equal(case.metrics["protocols"]["pooled"][name], reference(score.ravel(), truth.ravel()), RANKING_ERROR)
    required = ~np.isin(case.masks, (0, 3))
    assert_equal(
        case.metrics["protocols"]["pooled_ignoring_0_3"][name],
        reference(score[required], truth[required]),
        RANKING_ERROR,
    )
    assert case.metrics["protocols"]["pooled"][name]["largest_error"] < 0.01


@pytest.mark.parametrize("name", evaluation.SCORE_NAMES)
@pytest.mark.parametrize("ignored, protocol", [((), "per_image"), ((0, 3), "per_image_ignoring_0_3")])
def test_per_image_numbers_skip_images_without_anomaly(case, name, ignored, protocol):
    score, required = case.score(name), ~np.isin(case.masks, ignored)
    rows = [reference(score[i][required[i]], case.masks[i][required[i]] == ANOMALY) for i in range(len(AREAS))]
    row_of_score = case.metrics["protocols"][protocol][name]
    assert_equal(row_of_score, {key: np.mean([row[key] for row in rows]) for key in rows[0]} | {"images": len(AREAS)})
    low, high = row_of_score["aupr_interval"]
    spread = 1.96 * np.std([row["aupr"] for row in rows]) / len(rows) ** 0.5  # of a mean, were it normal
    assert (row_of_score["aupr"] - low, high - row_of_score["aupr"]) == pytest.approx((spread, spread), rel=0.35)


def test_headline_is_the_pooled_score_named(case):
    assert case.metrics["score"] == evaluation.headline(case.model, case.calibration) == "combined"
    assert_equal(
        case.metrics, reference(case.score("combined").ravel(), (case.masks == ANOMALY).ravel()), RANKING_ERROR
    )
    assert case.metrics["base_rate"] == pytest.approx(sum(AREAS) / case.masks.size)


def test_a_model_without_the_head_has_the_baseline_as_headline(case):
    model = Stub(case.logits)
    metrics = metrics_of(model, case.dataset, case.calibration)
    assert metrics["score"] == evaluation.headline(model, case.calibration) == "max_logit"
    assert_equal(metrics, reference(case.score("max_logit").ravel(), (case.masks == ANOMALY).ravel()), RANKING_ERROR)
    pooled = {name: row for name, row in case.metrics["protocols"]["pooled"].items() if name not in OF_HEAD}
    assert metrics["protocols"]["pooled"] == pooled and not set(OF_HEAD) & set(metrics["scores"])


@pytest.mark.parametrize("calibration, added", [(calibration_for(13), ["sml_raw", "sml"]), (None, [])])
def test_the_scores_that_can_be_had(case, calibration, added):
    names = [*scores.SCORES, *added]
    assert evaluation.score_names(Stub(case.logits), calibration) == names
    assert evaluation.score_names(case.model, calibration) == [*names, "outlier"]
    assert evaluation.score_names(case.model, case.calibration) == list(evaluation.SCORE_NAMES)


def test_a_calibration_without_tails_has_every_score_but_the_combined_and_says_so(case, capsys):
    result = evaluation.evaluate_split(trained_of(case.model, calibration_for(13)), case.dataset)
    assert "train again" in capsys.readouterr().out
    assert result.metrics["score"] == "max_logit" and "combined" not in result.metrics["protocols"]["pooled"]


def test_thresholds_come_from_the_calibration(case):
    truth = (case.masks == ANOMALY).ravel()
    for name, threshold in case.calibration["thresholds"].items():
        called = case.score(name).ravel() >= threshold
        assert called.mean() == pytest.approx(0.1, abs=0.001)
        expected = {"precision": precision_score(truth, called), "recall": recall_score(truth, called),
                    "f1": f1_score(truth, called), "threshold": threshold}  # fmt: skip
        assert_equal(case.metrics["scores"][name], expected)


def test_intervals_contain_the_value(case):
    low, high = case.metrics["miou_interval"]
    assert low < case.metrics["miou"] < high
    for name, pooled in case.metrics["protocols"]["pooled"].items():
        low, high = case.metrics["scores"][name]["aupr_interval"]
        assert 0 < low < pooled["aupr"] < high < 1


def test_curves_belong_to_the_pooled_ranking(case):
    assert set(case.result.curves) == set(evaluation.SCORE_NAMES)
    curve, score, truth = case.result.curves["max_logit"], case.score("max_logit"), case.masks == ANOMALY
    for threshold, recall, fpr in list(zip(curve["thresholds"], curve["recall"], curve["fpr"], strict=True))[::20]:
        assert recall == pytest.approx((score[truth] >= threshold).mean())
        assert fpr == pytest.approx((score[~truth] >= threshold).mean())


# -------------------------------------------------------------------------------------- other inputs
def test_without_calibration_a_line_says_what_is_missing(case, capsys):
    metrics = metrics_of(case.model, case.dataset, None)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("no calibration", "sml", "thresholds"))
    assert set(metrics["protocols"]["pooled"]) == {*scores.SCORES, "outlier"} and metrics["score"] == "max_logit"
    assert all("f1" not in entry for entry in metrics["scores"].values())
    assert metrics["protocols"]["pooled"]["outlier"] == case.metrics["protocols"]["pooled"]["outlier"]
    assert metrics["miou"] == case.metrics["miou"]


def test_road_anomaly_has_scores_and_no_classes(tmp_path):
    rng = np.random.default_rng(2)
    masks = np.where(rng.random((2, *SIZE)) < 0.1, 2, 0).astype(np.uint8)
    for index, mask in enumerate(masks):
        write_pair(tmp_path / "images" / f"{index}.png", tmp_path / "masks" / f"{index}.png", index, mask)
    logits = rng.normal(size=(2, 11, *SIZE)).astype(np.float32)
    metrics = metrics_of(Stub(logits), data.RoadAnomaly(tmp_path, "test"), calibration_for(11))
    assert_equal(metrics, reference(-logits.max(1).ravel(), masks.ravel() == 2), RANKING_ERROR)
    assert set(metrics["protocols"]) == {"pooled", "per_image"} and "miou" not in metrics


def test_split_without_anomalies_is_segmented_alone(case, tmp_path, capsys):
    dataset = street_hazards(tmp_path, case.masks[8:], "val", first=8)
    metrics = metrics_of(case.model, dataset, case.calibration)
    assert metrics["pixel_accuracy"] == pytest.approx((case.logits.argmax(1)[8:] == case.masks[8:]).mean())
    assert "aupr" not in metrics and "no anomalous pixel in the val split" in capsys.readouterr().out


def test_weights_for_other_classes_are_refused(case, camvid_root):
    for function in (road.evaluate, road.draw):
        with pytest.raises(settings.InputError, match="classes of mini.*camvid"):
            function(case.trained, camvid_root, dataset="camvid")


# --------------------------------------------------------------------------------------- calibration
@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """(logits and outlier scores of 3 train and 3 val images, their sets, what ``calibrate`` gives)."""
    root, rng = tmp_path_factory.mktemp("calibration"), np.random.default_rng(3)
    logits = rng.normal(0, 1, (6, 13, *SIZE)).astype(np.float32)
    logits[:, (4, 7)] += 3  # classes 4 and 7 alone are predicted often
    logits[3:] *= 1.5
    masks, outliers = rng.integers(0, 13, (3, *SIZE)), rng.normal(0, 1, (6, *SIZE)).astype(np.float32)
    sets = {"train": street_hazards(root, masks, "train"), "val": street_hazards(root, masks, "val", first=3)}
    return logits, outliers, sets, evaluation.calibrate(stub(logits, outliers), sets, CONFIG)


def test_statistics_of_each_split_by_predicted_class(calibrated):
    logits, _, _, calibration = calibrated
    for split, part in (("train", logits[:3]), ("val", logits[3:])):
        best, prediction = part.max(1), part.argmax(1)
        statistics = calibration["statistics"][split]
        assert statistics["count"].tolist() == np.bincount(prediction.ravel(), minlength=13).tolist()
        for label in (4, 7):
            values = best[prediction == label]
            assert statistics["mean"][label].item() == pytest.approx(values.mean(), rel=1e-4)
            assert statistics["std"][label].item() == pytest.approx(values.std(), rel=1e-4)


def test_thresholds_let_one_per_cent_of_normal_validation_pixels_through(calibrated):
    logits, outliers, _, calibration = calibrated
    val, statistics = torch.from_numpy(logits[3:]), calibration["statistics"]["train"]
    maps = scores.score_maps(
        val, statistics, evaluation.SCORE_NAMES, torch.from_numpy(outliers[3:]), calibration["tails"]
    )
    assert set(calibration["thresholds"]) == set(maps)
    for name, score in maps.items():
        above = (score > calibration["thresholds"][name]).float().mean().item()
        assert 0.009 < above <= 0.01, name


def test_a_model_without_the_head_has_no_threshold_for_it(calibrated):
    logits, _, sets, calibration = calibrated
    without = evaluation.calibrate(Stub(logits), sets, CONFIG)
    assert without["tails"] == {n: tail for n, tail in calibration["tails"].items() if n not in OF_HEAD}
    assert without["thresholds"] == {n: value for n, value in calibration["thresholds"].items() if n not in OF_HEAD}


def test_tails_are_the_scores_that_shares_of_the_normal_validation_pixels_reach(calibrated):
    logits, outliers, _, calibration = calibrated
    energy = -np.log(np.exp(logits[3:].astype(np.float64)).sum(1))
    for name, values in (("outlier", outliers[3:]), ("energy", energy)):
        expected = np.quantile(values, 1 - np.array(scores.TAIL_SHARES), method="inverted_cdf")
        assert calibration["tails"][name] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_void_is_no_part_of_the_thresholds(camvid_root):
    sets = {split: data.CamVid(camvid_root, split) for split in ("train", "val")}
    masks = np.stack([sets["val"].read_mask(index) for index in range(2)])
    logits = np.random.default_rng(4).normal(size=(2, 11, *masks.shape[1:])).astype(np.float32)
    logits[:, 0] += np.where(masks == data.IGNORE, 50, 0)  # sure, hence of low score, on void alone
    model = Stub(logits)
    calls = iter([*[0] * len(sets["train"]), 0, 1])
    model.backbone = lambda images: {"out": torch.tensor([next(calls)])}
    thresholds = evaluation.calibrate(model, sets, CONFIG)["thresholds"]
    normal = -logits.max(1)[masks != data.IGNORE]
    assert 0.009 < (normal > thresholds["max_logit"]).mean() <= 0.01


# -------------------------------------------------------------------------------------- single samples
def test_predict_gives_classes_and_confidence(case):
    item = prediction.predict_samples(case.trained, case.dataset, [1])[0]
    exponentials = np.exp(case.logits[1] - case.logits[1].max(0))
    assert np.array_equal(item.classes, case.logits[1].argmax(0)) and np.array_equal(item.mask, case.masks[1])
    assert np.allclose(item.confidence, exponentials.max(0) / exponentials.sum(0), atol=1e-5)
    assert item.name == case.dataset[1]["name"] and item.image.shape == (*SIZE, 3)
    assert item.logits.shape == (1, 13, *SIZE) and np.array_equal(item.outlier[0], case.outliers[1])
    assert prediction.predict_samples(trained_of(Stub(case.logits)), case.dataset, [1])[0].outlier is None


def test_sample_report(case):
    items = prediction.predict_samples(case.trained, case.dataset, [0, 1, 4])
    rows, summary = prediction.sample_report(items, case.dataset)
    assert list(rows) == [f"test/images/test/t5/{index}" for index in (0, 1, 4)]
    for item, row, index in zip(items, rows.values(), (0, 1, 4), strict=True):
        known = case.masks[index] != ANOMALY
        truth, guess = case.masks[index][known], case.logits[index].argmax(0)[known]
        iou = jaccard_score(truth, guess, labels=np.unique(truth), average="macro")
        assert_equal(row, {"mIoU": iou, "accuracy": (truth == guess).mean(), "confidence": item.confidence.mean()})
    accuracies = [row["accuracy"] for row in rows.values()]
    accuracy = {label: entry["accuracy"] for label, entry in summary.items()}
    expected = {"mean": np.mean(accuracies), "std": np.std(accuracies), "min": min(accuracies), "max": max(accuracies)}
    assert accuracy == pytest.approx(expected)


# -------------------------------------------------------------------------------------------- figures
@pytest.mark.parametrize("headed, count, rows", [(True, 2, 4), (False, 3, 6), (True, 5, 8)])
def test_figure_shows_the_best_and_the_worst(case, headed, count, rows):
    """Eight images hold an anomaly; none of them is shown twice."""
    model = case.model if headed else Stub(case.logits)
    trained = trained_of(model, case.calibration)
    score = case.score("combined") if headed else case.score("max_logit")
    aupr = {i: average_precision_score(case.masks[i].ravel() == ANOMALY, score[i].ravel()) for i in range(len(AREAS))}
    order = sorted(aupr, key=aupr.get, reverse=True)
    figure = figures.best_and_worst(trained, case.dataset, count)
    expected = (
        ["input", "max logit", "combined", "combined: found"] if headed else ["input", "max logit", "max logit: found"]
    )
    columns, pictures = len(expected), figure.axes[:-1]  # the last is the colour bar
    assert len(pictures) == rows * columns
    assert [axis.get_title() for axis in pictures[:columns]] == expected
    labels = [axis.texts[-1].get_text() for axis in pictures[::columns]]
    assert labels == [f"AUPR {aupr[i]:.2f}" for i in order[: rows // 2] + order[-(rows // 2) :]]
    plt.close(figure)


def test_detections_count_what_the_threshold_calls(case):
    (item,) = prediction.predict_samples(case.trained, case.dataset, [0])
    called, truth = np.zeros(item.mask.shape, bool), item.mask == ANOMALY
    called.ravel()[np.r_[np.flatnonzero(truth)[:3], np.flatnonzero(~truth)[:1]]] = True
    picture, note = figures.detection(item, called, case.dataset)
    assert note == f"precision 0.75\nrecall {3 / truth.sum():.2f}"
    colours = {name: (picture == colour).all(-1).sum() for name, colour in plots.OUTCOMES.items()}
    assert colours == {"found": 3, "missed": truth.sum() - 3, "false alarm": 1}
    item.mask[called & ~truth] = data.IGNORE
    picture, note = figures.detection(item, called, case.dataset)
    assert note.startswith("precision 1.00") and not (picture == plots.OUTCOMES["false alarm"]).all(-1).any()


def test_score_maps_are_grey_below_the_threshold_and_the_same_in_every_picture(case):
    items = prediction.predict_samples(case.trained, case.dataset, [0, 1])
    threshold = float(np.interp(-np.log(0.01), -np.log(scores.TAIL_SHARES), TAIL))
    for item in items:
        score = prediction.prediction_maps(case.trained, item, ("outlier",))["outlier"]
        picture = prediction.score_map(item.image, score, TAIL.tolist())
        grey = (picture == picture[..., :1]).all(-1)
        assert (grey == (score[0].numpy() < threshold)).all() and 0 < grey.mean() < 1

"""Metrics against hand computations, folds that do not leak, and activation maps against recorded events."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src import series, settings, system
from src.series import data, evaluation
from src.series.model import Classifier, fit_temperature
from src.synthetic import time_series
from src.synthetic.time_series import CLASSES
from tests.series.helpers import THREE, TINY, KnownOutput, labelled

ABC = ("up", "flat", "down")


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values)


# ------------------------------------------------------------------------------------- of probabilities
def test_calibration_by_hand():
    """Bins of 1/15: 0.41 and 0.45 share the seventh, 0.70 is in the eleventh, 0.95 and 1.00 are in the last."""
    calibrated = evaluation.calibration(
        rows((0.41, 0.30, 0.29), (0.45, 0.35, 0.20), (0.1, 0.7, 0.2), (0, 0.05, 0.95), (0, 0, 1.0)),
        torch.tensor([0, 1, 1, 0, 2]),
    )
    assert calibrated["bins"]["count"] == [2, 1, 2]
    assert calibrated["bins"]["confidence"] == pytest.approx([0.43, 0.70, 0.975], abs=1e-6)
    assert calibrated["bins"]["accuracy"] == pytest.approx([0.5, 1.0, 0.5])
    assert calibrated["ece"] == pytest.approx((2 * 0.07 + 0.30 + 2 * 0.475) / 5, abs=1e-6)


def test_measure_by_hand():
    """Of three classes the second is not there, though it is predicted once."""
    metrics = evaluation.measure(
        rows((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.1, 0.5, 0.4), (0.2, 0.1, 0.7), (0.5, 0.3, 0.2)),
        torch.tensor([0, 0, 2, 2, 2]),
        ABC,
    )
    assert metrics["accuracy"] == pytest.approx(3 / 5) and metrics["top2"] == pytest.approx(4 / 5)
    assert metrics["precision"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["recall"] == pytest.approx((1 + 1 / 3) / 2) and metrics["macro_f1"] == pytest.approx(0.65)
    assert metrics["per_class"] == {
        "up": pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "plots": 2}),
        "down": pytest.approx({"precision": 1, "recall": 1 / 3, "f1": 0.5, "plots": 3}),
    }
    assert metrics["confusion"] == [[2, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert metrics["plots"] == 5 and metrics["chance"] == pytest.approx(1 / 3)
    low, high = metrics["accuracy_interval"]
    assert 0 <= low < 0.6 < high <= 1
    assert metrics["ece"] == pytest.approx((0.2 + 0.4 + 0.5 + 0.3 + 0.5) / 5)  # each in a bin of its own, but 0.5


# --------------------------------------------------------------------------------------------------- folds
@pytest.fixture
def folded():
    """(classifier of three members that are sure to a different degree, 90 items that are logits, fold)."""
    torch.manual_seed(0)
    factors = iter((0.5, 1.0, 4.0))
    classifier = Classifier(lambda: KnownOutput(next(factors)), 3)
    logits = 2 * torch.randn(90, 3)
    labels = logits.softmax(1).multinomial(1)[:, 0]
    return classifier, labelled(logits, labels, ABC), torch.arange(90) % 3


def test_each_plot_is_predicted_by_the_member_that_left_it_out(folded):
    _, plots, fold = folded
    logs = evaluation.out_of_fold(*folded)
    factors = torch.tensor([0.5, 1.0, 4.0])[fold]
    assert torch.allclose(logs, (factors[:, None] * plots.items).log_softmax(1), atol=1e-5)


def test_held_out_temperatures_come_from_the_other_folds(folded):
    classifier, plots, fold = folded
    logs = evaluation.out_of_fold(*folded)
    probabilities = evaluation.held_out_probabilities(*folded)
    fitted = [fit_temperature(logs[fold != k], plots.labels[fold != k]) for k in range(3)]
    assert len(set(fitted)) == 3
    for k in range(3):
        assert torch.allclose(probabilities[fold == k], (logs[fold == k] / fitted[k]).softmax(1), atol=1e-5)
    # No label of a fold has a say in its own probabilities, but in those of the others
    turned = plots.labels.where(fold != 1, (plots.labels + 1) % 3)
    again = evaluation.held_out_probabilities(classifier, labelled(plots.items, turned, ABC), fold)
    assert torch.equal(again[fold == 1], probabilities[fold == 1])
    assert not torch.allclose(again[fold == 0], probabilities[fold == 0], atol=1e-3)


def test_validation_gives_accuracy_and_likelihood():
    logits, labels = rows((2.0, 0, 0), (0, 3, 0), (0, 0, 1), (1, 0, 0)), torch.tensor([0, 1, 2, 2])
    metrics = evaluation.validate(KnownOutput(), labelled(logits, labels, ABC), (), TINY)
    assert metrics["accuracy"] == 0.75
    by_hand = -float(np.mean([float(logits[i].log_softmax(0)[labels[i]]) for i in range(4)]))
    assert metrics["nll"] == pytest.approx(by_hand, rel=1e-5)


def test_validation_averages_flips():
    """Flipped, these logits predict the other class: the mean is undecided."""
    logits = torch.tensor([[[0.0, 4.0]]]).repeat(3, 1, 1)

    class Last(KnownOutput):
        def forward(self, items):
            return items[:, 0], None

    both = evaluation.validate(Last(), labelled(logits, [1, 1, 1], ("a", "b")), ("horizontal",), TINY)
    alone = evaluation.validate(Last(), labelled(logits, [1, 1, 1], ("a", "b")), (), TINY)
    assert both["nll"] == pytest.approx(math.log(2), rel=1e-4) and alone["nll"] < 0.05


# -------------------------------------------------------------------------------------------------- events
def columns(near: np.ndarray) -> list[int]:
    return np.flatnonzero(near).tolist()


def test_columns_near_an_event_by_hand():
    """Twenty columns with their middles at 0.025, 0.075 ...; an event counts to 5 % of the axis either way."""
    assert columns(evaluation.near_events([(50, 51)], 101, 20)) == [9, 10]  # at 0.5: 0.475 and 0.525 are near
    assert columns(evaluation.near_events([(20, 41)], 101, 20)) == list(range(3, 9))  # 0.2 to 0.4: 0.175 to 0.425
    assert columns(evaluation.near_events([(0, 1), (100, 101)], 101, 20)) == [0, 19]
    assert evaluation.near_events([(50, 51)], 101, 100).sum() == 10  # a tenth of the axis, however fine the map


def test_hits_by_hand():
    maps = rows((0, 1, 3, 0), (5, 0, 0, 0), (0, 0, 0, 2), (0, 4, 0, 0))
    near = np.array([[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1]], bool)
    assert evaluation.hits(maps, near) == {"hit_rate": 0.75, "chance": pytest.approx(7 / 16), "plots": 4}


def test_event_columns_share_a_row():
    known = [{"length": 100, "events": ((50, 51),)}, {"length": 80, "events": ((0, 20), (79, 80))}, {"events": ()}]
    shares = evaluation.event_columns(known, 40)
    assert shares.shape == (3, 40) and shares.sum(1).tolist() == pytest.approx([1, 1, 0])
    assert shares[0].nonzero()[:, 0].tolist() == [20] and shares[1].nonzero()[:, 0].tolist() == [*range(10), 39]
    assert shares[1, 0] == pytest.approx(1 / 11)


def test_event_columns_are_near_their_events():
    """What training asks for is what the evaluation counts as a hit."""
    for length in (50, 333, 2000):
        for start in (0, length // 3, length - 1):
            shares = evaluation.event_columns([{"length": length, "events": ((start, start + 1),)}])[0]
            near = evaluation.near_events([(start, start + 1)], length, len(shares))
            assert near[int(shares.argmax())]


def test_accuracy_by_length():
    correct = torch.tensor([True, False, True, True, False])
    by_length = evaluation.by_length(correct, [50, 99, 1000, 2000, 2001])
    assert by_length == {"50-99": 0.5, "1000-2000": 1.0, "2001-": 0.0}


def known_of(*events: tuple) -> list[dict]:
    return [{"length": 81, "events": of_series} for of_series in events]


def test_measures_of_generated_series():
    """Series 1 has no event, and its map does not count; those of 0 and 3 peak at theirs."""
    maps = torch.zeros(3, 40)
    maps[0, 20] = maps[1, 0] = maps[2, 39] = 1
    plots = labelled(torch.zeros(4, 3), [0, 1, 2, 2], ABC)
    known = known_of(((40, 41),), (), ((40, 41),), ((80, 81),))
    measured = evaluation.measure_known(KnownOutput(maps=maps), torch.eye(3)[torch.tensor([0, 1, 2, 0])], plots, known)
    assert measured["lengths"] == {"50-99": 0.75}
    activation = measured["activation"]
    assert (activation["hit_rate"], activation["plots"]) == (pytest.approx(2 / 3), 3)
    assert activation["up"]["hit_rate"] == 1 and activation["down"]["hit_rate"] == 0.5 and "flat" not in activation
    assert activation["up"]["chance"] == pytest.approx(4 / 40)


def test_classes_without_events_have_no_activation():
    plots = labelled(torch.zeros(2, 3), [0, 1], ABC)
    measured = evaluation.measure_known(KnownOutput(), torch.eye(3)[:2], plots, known_of((), ()))
    assert measured == {"lengths": {"50-99": 1.0}}


# --------------------------------------------------------------------------------------- of trained models
def measure(trained: system.Trained, root: Path | None, dataset: str | None, split: str) -> tuple[dict, dict]:
    return system.measure(series, trained, root, dataset, split)


def test_evaluation_of_test_and_of_class_folders(root, trained):
    """Where a folder holds the classes directly, every plot belongs to the split named."""
    metrics, described = measure(trained, root, None, "test")
    assert metrics["plots"] == described["files"] == 18 and set(metrics["per_class"]) == set(CLASSES)
    assert described["dataset"] == "plots" and metrics["temperature"] == float(trained.model.temperature)
    for split in ("test", "val"):
        direct = measure(trained, root / "test", "folder", split)[0]
        assert direct == {key: metrics[key] for key in direct}
        assert metrics.keys() - direct.keys() == {"lengths", "activation"}


def test_an_untrained_model_guesses_the_same_twice(root, trained):
    """Nothing of training is on in an evaluation: no dropout, no statistics of batches."""
    untrained = replace(trained, model=series.build_model(TINY).train())
    metrics = series.evaluate(untrained, root)
    assert series.evaluate(untrained, root) == metrics and metrics["accuracy"] < 0.5


def test_validation_plots_are_those_held_out(root, trained):
    """By their names the metadata knows them as plots of train, of which they are a fold."""
    metrics, described = measure(trained, root, None, "val")
    assert metrics["plots"] == 9 and described["files"] == 45 and "activation" in metrics
    assert metrics["accuracy"] == max(row["accuracy"] for row in trained.history["val"])


def test_generated_plots_know_their_events(trained, monkeypatch):
    monkeypatch.setattr(data, "DRAWN", 3)
    metrics, described = measure(trained, None, "generated", "test")
    assert metrics["plots"] == 27 and described == {"dataset": "generated", "split": "test"}
    assert set(metrics["activation"]) >= {"hit_rate", "chance", "point_anomaly"} and metrics["lengths"]


def test_a_folder_may_lack_classes(root, trained, tmp_path):
    for label in THREE:
        shutil.copytree(root / "test" / label, tmp_path / label)
    some, every = measure(trained, tmp_path, "folder", "test")[0], measure(trained, root, None, "test")[0]
    assert set(some["per_class"]) == set(THREE) and some["plots"] == 6 and len(some["confusion"]) == 9
    for name in THREE:
        assert some["confusion"][CLASSES.index(name)] == every["confusion"][CLASSES.index(name)]


def test_folders_of_numbers_are_evaluated(trained, tmp_path):
    """Class folders of CSV files, of three classes of nine: what the network predicts from their numbers, counted."""
    right, (_, of_series) = 0, data.item_makers(trained.config)
    for label in THREE:
        for number in range(3):
            one = time_series.generate(label, number, "test")
            time_series.write_csv(one, tmp_path / label / f"{number}.csv")
            probabilities = trained.model.probabilities(torch.tensor(of_series(one.values))[None])
            right += CLASSES[int(probabilities.argmax())] == label
    metrics, described = measure(trained, tmp_path, "folder", "test")
    assert metrics["plots"] == described["files"] == 9 and metrics["accuracy"] == pytest.approx(right / 9)


def test_each_fold_is_measured_by_the_network_that_left_it_out(root, crossed):
    """What the folds' histories say of their last epoch is what an evaluation says: of every plot once."""
    of_all, of_folds = crossed
    metrics, described = measure(of_folds, root, None, "val")
    last = [of_folds.history[f"fold {k}"][-1]["accuracy"] for k in range(5)]
    assert metrics["plots"] == described["files"] == 45 and metrics["accuracy"] == pytest.approx(np.mean(last))
    plots = series.read_split(of_all.config, root, "train")
    logs = evaluation.out_of_fold(of_folds.model, plots, data.folds(plots.labels, 5, of_all.config.seed))
    assert float(of_all.model.temperature) == pytest.approx(fit_temperature(logs, plots.labels), rel=1e-6)


def test_the_network_of_all_plots_has_no_validation_plots(root, crossed):
    with pytest.raises(settings.InputError, match=r"out.pth was trained on all plots of train: evaluate --split test"):
        measure(crossed[0], root, None, "val")
    assert measure(crossed[0], root, None, "test")[0]["plots"] == 18


def test_plots_of_another_folder_or_split_are_new_to_all(root, crossed, tmp_path):
    """Of the model's own data set alone, and where it brings no validation split, did folds leave plots out."""
    shutil.copytree(root, tmp_path / "copy")
    shutil.copytree(root / "test", tmp_path / "copy/val")
    (tmp_path / "copy/metadata.json").unlink()
    for trained in crossed:
        test = measure(trained, tmp_path / "copy", None, "test")[0]
        assert test["plots"] == 18
        assert measure(trained, tmp_path / "copy", None, "val")[0] == test
        assert measure(trained, root / "test", "folder", "val")[0] == test

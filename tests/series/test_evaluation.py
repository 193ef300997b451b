"""Numbers against hand computations, folds that do not leak, and activation maps against recorded events."""

import math

import numpy as np
import pytest
import torch

from src.series import evaluation
from src.series.model import Classifier, fit_temperature
from tests.series.systems import TINY, Told, labelled, on_the_cpu  # noqa: F401

ABC = ("up", "flat", "down")


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values)


# --------------------------------------------------------------------------------------------- calibration
def test_calibration_by_hand():
    """Bins of 1/15: 0.41 and 0.45 share the seventh, 0.70 is in the eleventh, 0.95 and 1.00 are in the last."""
    found = evaluation.calibration(
        rows((0.41, 0.30, 0.29), (0.45, 0.35, 0.20), (0.1, 0.7, 0.2), (0, 0.05, 0.95), (0, 0, 1.0)),
        torch.tensor([0, 1, 1, 0, 2]),
    )
    assert found["bins"]["count"] == [2, 1, 2]
    assert found["bins"]["confidence"] == pytest.approx([0.43, 0.70, 0.975], abs=1e-6)
    assert found["bins"]["accuracy"] == pytest.approx([0.5, 1.0, 0.5])
    assert found["ece"] == pytest.approx((2 * 0.07 + 0.30 + 2 * 0.475) / 5, abs=1e-6)


def test_honest_probabilities_are_calibrated_and_others_are_not():
    torch.manual_seed(0)
    logits = 2 * torch.randn(20_000, 4)
    labels = logits.softmax(1).multinomial(1)[:, 0]
    assert evaluation.calibration(logits.softmax(1), labels)["ece"] < 0.015
    for factor in (3.0, 0.3):
        assert evaluation.calibration((factor * logits).softmax(1), labels)["ece"] > 0.08


# ------------------------------------------------------------------------------------------------- measure
def test_measure_by_hand():
    """Of three classes the second is not there, though it is named once."""
    found = evaluation.measure(
        rows((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.1, 0.5, 0.4), (0.2, 0.1, 0.7), (0.5, 0.3, 0.2)),
        torch.tensor([0, 0, 2, 2, 2]),
        ABC,
    )
    assert found["accuracy"] == pytest.approx(3 / 5) and found["top2"] == pytest.approx(4 / 5)
    assert found["precision"] == pytest.approx((2 / 3 + 1) / 2) and found["recall"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5) / 2)
    assert found["per_class"] == {
        "up": pytest.approx({"precision": 2 / 3, "recall": 1, "f1": 0.8, "plots": 2}),
        "down": pytest.approx({"precision": 1, "recall": 1 / 3, "f1": 0.5, "plots": 3}),
    }
    assert found["confusion"] == [[2, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert found["plots"] == 5 and found["chance"] == pytest.approx(1 / 3)
    low, high = found["accuracy_interval"]
    assert 0 <= low < 0.6 < high <= 1
    assert found["ece"] == pytest.approx((0.2 + 0.4 + 0.5 + 0.3 + 0.5) / 5)  # each plot in a bin of its own, but 0.5
    assert sum(found["reliability"]["count"]) == 5


def test_the_interval_narrows_with_the_number_of_plots():
    widths = []
    for count in (40, 4000):
        probabilities = torch.eye(2)[torch.arange(count) % 4 // 3]
        low, high = evaluation.measure(probabilities, torch.zeros(count, dtype=torch.int64), ("a", "b"))[
            "accuracy_interval"
        ]
        assert low < 0.75 < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 4000), rel=0.15) and widths[0] > 6 * widths[1]


# --------------------------------------------------------------------------------------------------- folds
@pytest.fixture
def folded():
    """(classifier of three members that are sure to a different degree, 90 items that are logits, fold)."""
    torch.manual_seed(0)
    factors = iter((0.5, 1.0, 4.0))
    classifier = Classifier(lambda: Told(next(factors)), 3)
    logits = 2 * torch.randn(90, 3)
    labels = logits.softmax(1).multinomial(1)[:, 0]
    return classifier, labelled(logits, labels, ABC), torch.arange(90) % 3


def test_each_plot_is_judged_by_the_member_that_left_it_out(folded):
    classifier, found, fold = folded
    logs = evaluation.out_of_fold(*folded)
    factors = torch.tensor([0.5, 1.0, 4.0])[fold]
    assert torch.allclose(logs, (factors[:, None] * found.items).log_softmax(1), atol=1e-5)


def test_held_out_temperatures_come_from_the_other_folds(folded):
    classifier, found, fold = folded
    logs = evaluation.out_of_fold(*folded)
    probabilities = evaluation.held_out_probabilities(*folded)
    fitted = [fit_temperature(logs[fold != k], found.labels[fold != k]) for k in range(3)]
    assert len(set(fitted)) == 3
    for k in range(3):
        assert torch.allclose(probabilities[fold == k], (logs[fold == k] / fitted[k]).softmax(1), atol=1e-5)
    # No label of a fold has a say in its own probabilities, but in those of the others
    turned = found.labels.where(fold != 1, (found.labels + 1) % 3)
    again = evaluation.held_out_probabilities(classifier, labelled(found.items, turned, ABC), fold)
    assert torch.equal(again[fold == 1], probabilities[fold == 1])
    assert not torch.allclose(again[fold == 0], probabilities[fold == 0], atol=1e-3)


def test_validation_gives_accuracy_and_likelihood():
    logits, labels = rows((2.0, 0, 0), (0, 3, 0), (0, 0, 1), (1, 0, 0)), torch.tensor([0, 1, 2, 2])
    found = evaluation.validate(Told(), labelled(logits, labels, ABC), (), TINY)
    assert found["accuracy"] == 0.75
    by_hand = -float(np.mean([float(logits[i].log_softmax(0)[labels[i]]) for i in range(4)]))
    assert found["nll"] == pytest.approx(by_hand, rel=1e-5)


def test_validation_averages_flips():
    """Flipped, these logits name the other class: the mean is undecided."""
    logits = torch.tensor([[[0.0, 4.0]]]).repeat(3, 1, 1)

    class Last(Told):
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
    assert columns(evaluation.near_events([(0, 1)], 101, 20)) == [0]
    assert columns(evaluation.near_events([(100, 101)], 101, 20)) == [19]
    assert columns(evaluation.near_events([(20, 41)], 101, 20)) == list(range(3, 9))  # 0.2 to 0.4: 0.175 to 0.425
    assert columns(evaluation.near_events([(0, 1), (100, 101)], 101, 20)) == [0, 19]
    assert evaluation.near_events([(50, 51)], 101, 100).sum() == 10  # a tenth of the axis, however fine the map


def test_hits_by_hand():
    maps = rows((0, 1, 3, 0), (5, 0, 0, 0), (0, 0, 0, 2), (0, 4, 0, 0))
    near = np.array([[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1]], bool)
    assert evaluation.hits(maps, near) == {"hit_rate": 0.75, "chance": pytest.approx(7 / 16), "plots": 4}


def test_places_of_events_share_a_row():
    known = [{"length": 100, "events": ((50, 51),)}, {"length": 80, "events": ((0, 20), (79, 80))}, {"events": ()}]
    found = evaluation.places(known, 40)
    assert found.shape == (3, 40) and found.sum(1).tolist() == pytest.approx([1, 1, 0])
    assert found[0].nonzero()[:, 0].tolist() == [20] and found[1].nonzero()[:, 0].tolist() == [*range(10), 39]
    assert found[1, 0] == pytest.approx(1 / 11)


def test_places_are_near_their_events():
    """What training asks for is what the evaluation counts as a hit."""
    for length in (50, 333, 2000):
        for start in (0, length // 3, length - 1):
            where = evaluation.places([{"length": length, "events": ((start, start + 1),)}])[0]
            near = evaluation.near_events([(start, start + 1)], length, len(where))
            assert near[int(where.argmax())]


def test_accuracy_by_length():
    correct = torch.tensor([True, False, True, True, False])
    found = evaluation.by_length(correct, [50, 99, 1000, 2000, 2001])
    assert found == {"50-99": 0.5, "1000-2000": 1.0, "2001-": 0.0}


def known_of(*events: tuple) -> list[dict]:
    return [{"length": 81, "events": own} for own in events]


def test_measures_of_generated_series():
    """Series 1 has no event, and its map no say; 0 and 3 look at theirs."""
    maps = torch.zeros(3, 40)
    maps[0, 20] = maps[1, 0] = maps[2, 39] = 1
    found = labelled(torch.zeros(4, 3), [0, 1, 2, 2], ABC)
    known = known_of(((40, 41),), (), ((40, 41),), ((80, 81),))
    measured = evaluation.measure_known(Told(maps=maps), torch.eye(3)[torch.tensor([0, 1, 2, 0])], found, known)
    assert measured["lengths"] == {"50-99": 0.75}
    activation = measured["activation"]
    assert (activation["hit_rate"], activation["plots"]) == (pytest.approx(2 / 3), 3)
    assert activation["up"]["hit_rate"] == 1 and activation["down"]["hit_rate"] == 0.5 and "flat" not in activation
    assert activation["up"]["chance"] == pytest.approx(4 / 40)


def test_classes_without_events_have_no_activation():
    found = labelled(torch.zeros(2, 3), [0, 1], ABC)
    measured = evaluation.measure_known(Told(), torch.eye(3)[:2], found, known_of((), ()))
    assert measured == {"lengths": {"50-99": 1.0}}

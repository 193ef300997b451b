"""Objects and detections counted by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from src.road import objects


def label_map(rows: list[str]) -> np.ndarray:
    return np.array([[int(character) for character in row] for row in rows])


TRUTH = label_map(
    [
        "11002200",
        "11002200",
        "00000000",
        "30000000",
    ]
)


def test_a_detection_over_two_objects_costs_neither_what_it_shares_with_the_other():
    called = TRUTH == 0
    called[:] = False
    called[:2, 1:5] = True  # two of object 1, two of object 2, four beside
    siou, ppv = objects.compare(TRUTH, called)
    assert siou == [2 / (4 + 4), 2 / (4 + 4), 0]
    assert ppv == [4 / 8]


def test_an_object_in_two_pieces_counts_both():
    called = np.zeros_like(TRUTH, dtype=bool)
    called[0, 0] = called[1, 0] = called[0, 6] = called[3, 3] = True
    called[1, 4] = True
    siou, ppv = objects.compare(TRUTH, called)
    assert siou == [2 / 4, 1 / 4, 0]  # the piece beside object 2 does not touch it
    assert sorted(ppv) == [0, 0, 1, 1]


def test_perfect_and_empty_detections():
    assert objects.compare(TRUTH, TRUTH > 0) == ([1, 1, 1], [1, 1, 1])
    assert objects.compare(TRUTH, TRUTH < 0) == ([0, 0, 0], [])


def test_f1_is_the_mean_over_levels():
    meter = objects.ObjectMeter(threshold=0.5)
    score = torch.zeros(40, 40)
    anomaly = torch.zeros(40, 40, dtype=torch.bool)
    anomaly[:10, :10] = anomaly[20:30, 20:30] = True
    score[:10, :5] = 1.0  # sIoU 0.5, PPV 1
    score[35:, 35:] = 1.0  # a false alarm
    meter.update(score, anomaly, torch.ones_like(anomaly))
    metrics = meter.compute()["objects"]
    f1 = [2 * (level < 0.5) / (2 + (level < 0.5) + 1) for level in objects.LEVELS]
    assert metrics == {"count": 2, "siou": 0.25, "ppv": 0.5, "f1": pytest.approx(np.mean(f1))}


def test_specks_and_unlabelled_detections_are_no_false_alarms():
    meter = objects.ObjectMeter(threshold=0.5)
    score, anomaly = torch.zeros(100, 100), torch.zeros(100, 100, dtype=torch.bool)
    anomaly[:10, :10] = True
    score[:10, :10] = score[50:52, 50:52] = score[80:, 80:] = 1.0
    labelled = torch.ones_like(anomaly)
    labelled[80:, 80:] = False
    meter.update(score, anomaly, labelled)
    assert meter.compute()["objects"] == {"count": 1, "siou": 1, "ppv": 1, "f1": 1}


def test_aupr_by_size_takes_the_other_objects_out():
    rng = np.random.default_rng(0)
    meter, images = objects.ObjectMeter(threshold=None), []
    for _ in range(3):
        anomaly, labelled = np.zeros((100, 100), bool), rng.random((100, 100)) > 0.1
        anomaly[10:12, 10:12] = anomaly[40:60, 40:60] = True
        labelled |= anomaly
        score = rng.normal(size=(100, 100)).astype(np.float32) + anomaly
        meter.update(torch.from_numpy(score), torch.from_numpy(anomaly), torch.from_numpy(labelled))
        images.append((score, anomaly, labelled))
    rows = meter.compute()
    assert list(rows) == ["by_size"] and list(rows["by_size"]) == ["below 0.1 %", "above 1 %"]
    for size, part in (("below 0.1 %", np.s_[10:12, 10:12]), ("above 1 %", np.s_[40:60, 40:60])):
        truth, scores = [], []
        for score, anomaly, labelled in images:
            chosen = np.zeros_like(anomaly)
            chosen[part] = True
            considered = labelled & (~anomaly | chosen)
            truth.append(chosen[considered])
            scores.append(score[considered])
        expected = average_precision_score(np.concatenate(truth), np.concatenate(scores))
        assert rows["by_size"][size]["aupr"] == pytest.approx(expected, abs=1e-3)
        assert rows["by_size"][size]["base_rate"] == pytest.approx(np.concatenate(truth).mean())

"""Rows that notebooks show of road's records."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src import records
from src.road import tables


@pytest.fixture(scope="module")
def record():
    return records.load("road", "road_anomaly_test")


def test_ranking_and_intervals_are_the_record_s(record):
    pooled = record["protocols"]["pooled"]
    assert tables.ranking(record)["sml"] == {title: pooled["sml"][key] for key, title in tables.TITLES.items()}
    low, high = record["scores"]["sml"]["aupr_interval"]
    assert tables.intervals(record)["sml"] == {"AUPR": pooled["sml"]["aupr"], "low": low, "high": high}
    assert tables.at_threshold(record)["sml"]["f1"] == record["scores"]["sml"]["f1"]


def test_pooled_and_per_image_stand_side_by_side(record):
    row = tables.pooled_and_per_image(record)["combined"]
    assert row["pooled AUPR"] == record["aupr"]
    assert row["per-image AUPR"] == record["protocols"]["per_image"]["combined"]["aupr"]
    assert row["per-image low"] < row["per-image AUPR"] < row["per-image high"]


def test_candidates_are_ordered_and_end_with_chance():
    runs = {name: records.load("road", f"{name}_selection") for name in ("mini", "camvid")}
    rows = tables.candidates(runs)
    values = [row["mini"] for name, row in rows.items() if name != "chance"]
    assert values == sorted(values, reverse=True)
    assert list(rows)[-1] == "chance"
    assert rows["max_logit"]["camvid"] == runs["camvid"]["candidates"]["max_logit"]


def test_rules_have_a_column_for_each_kind():
    record = records.load("road", "mini_combined")
    rows = tables.rules(record)
    assert set(rows["max_logit"].values()) == {1.0}
    assert list(rows["energy"]) == ["pasted", "small", "left out", "all"]
    overall = tables.rules_overall({"first": record, "second": record})
    assert list(overall) == list(rows)
    assert overall["energy"] == dict.fromkeys(("first", "second"), rows["energy"]["all"])


def test_scores_across_sets_leave_out_what_a_set_lacks(record):
    without_head = {name: row for name, row in record["protocols"]["pooled"].items() if name != "outlier"}
    second = {"protocols": {"pooled": without_head}, "base_rate": 0.5}
    rows = tables.across_sets({"photographs": record, "others": second})
    assert rows["msp"] == dict.fromkeys(("photographs", "others"), record["protocols"]["pooled"]["msp"]["aupr"])
    assert list(rows["outlier"]) == ["photographs"]
    assert rows["chance"] == {"photographs": record["base_rate"], "others": 0.5}
    assert "chance" not in tables.across_sets({"photographs": record}, "fpr95")


def test_objects_of_a_record():
    record = {
        "objects": {"count": 7, "siou": 0.3, "ppv": 0.2, "f1": 0.1},
        "by_size": {"above 1 %": {"aupr": 0.6, "base_rate": 0.05}},
    }
    expected = {"objects": 7, "sIoU": 0.3, "PPV": 0.2, "F1": 0.1, "AUPR, above 1 %": 0.6}
    assert tables.objects({"photographs": record}) == {"photographs": expected}


def test_false_alarms_of_two_places():
    runs = {"Lost & Found": "lost_found_sml", "RoadAnomaly": "road_anomaly_sml"}
    places = {name: records.load("road", run) for name, run in runs.items()}
    rows = tables.false_alarms(places, ("outlier",))
    assert rows["all normal pixels"] == {f"outlier, {p}": r["false_alarms"]["outlier"] for p, r in places.items()}
    assert list(rows)[1] == "predicted road"  # the largest class of RoadAnomaly
    assert rows["predicted sky"]["share of normal, RoadAnomaly"] == pytest.approx(0.15, abs=0.01)


def test_what_anomalies_are_predicted_as():
    dataset = SimpleNamespace(anomaly=2, classes=[SimpleNamespace(name="a"), SimpleNamespace(name="b")])
    mask, classes = np.array([[2, 2, 2, 0]]), np.array([[1, 1, 0, 0]])
    predictions = [SimpleNamespace(mask=mask, classes=classes)]
    rows = tables.anomalies_predicted_as(predictions, dataset, {"mean": torch.tensor([5.0, 4.0])})
    assert list(rows) == ["b", "a"]
    assert rows["b"] == {"% of anomalous pixels": pytest.approx(200 / 3), "mean max logit": 4.0}

"""Rows for ``records.table``: what the records of a road model, or its predictions, say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from src.road.data import RoadDataset
from src.road.prediction import Prediction

TITLES = {"aupr": "AUPR", "auroc": "AUROC", "fpr95": "FPR95", "f1_max": "f1_max"}
Rows = dict[str, dict[str, Any]]


def ranking(record: Mapping, protocol: str = "pooled") -> Rows:
    """Score -> AUPR, AUROC, FPR95 and f1_max by one protocol."""
    table = record["protocols"][protocol]
    return {score: {title: row[key] for key, title in TITLES.items()} for score, row in table.items()}


def intervals(record: Mapping) -> Rows:
    """Score -> pooled AUPR with the ends of its 95 % interval."""
    pooled = record["protocols"]["pooled"]
    return {
        score: _with_interval(pooled[score]["aupr"], row["aupr_interval"]) for score, row in record["scores"].items()
    }


def pooled_and_per_image(record: Mapping) -> Rows:
    """Score -> pooled AUPR, AUROC and FPR95, and the mean AUPR over images; both AUPRs with their 95 % intervals."""
    protocols, rows = record["protocols"], {}
    for score, row in intervals(record).items():
        pooled, mean = protocols["pooled"][score], protocols["per_image"][score]
        rows[score] = {f"pooled {title}": value for title, value in row.items()}
        rows[score] |= {"pooled AUROC": pooled["auroc"], "pooled FPR95": pooled["fpr95"]}
        per_image = _with_interval(mean["aupr"], mean["aupr_interval"])
        rows[score] |= {f"per-image {title}": value for title, value in per_image.items()}
    return rows


def _with_interval(aupr: float, interval: Sequence[float]) -> dict[str, float]:
    return {"AUPR": aupr, "low": interval[0], "high": interval[1]}


def at_threshold(record: Mapping) -> Rows:
    """Score -> the best F1 of any threshold, and F1, precision and recall at the threshold from validation pixels."""
    pooled = record["protocols"]["pooled"]
    return {
        score: {"f1_max": pooled[score]["f1_max"]} | {key: row[key] for key in ("f1", "precision", "recall")}
        for score, row in record["scores"].items()
    }


def candidates(records: Mapping[str, Mapping]) -> Rows:
    """Score -> AUPR in each selection record, best first by the first of them; then chance."""
    first = next(iter(records.values()))["candidates"]
    order = sorted(first, key=first.get, reverse=True)
    rows = {score: {name: record["candidates"][score] for name, record in records.items()} for score in order}
    return rows | {"chance": {name: record["base_rate"] for name, record in records.items()}}


def rules(record: Mapping) -> Rows:
    """Rule that joins head and energy -> AUPR relative to max logit's, by kind of validation anomaly, and over all."""
    return {
        rule: {kind.replace("_", " "): ratio for kind, ratio in ratios.items()}
        for rule, ratios in record["ratios"].items()
    }


def rules_overall(records: Mapping[str, Mapping]) -> Rows:
    """The same over all kinds (geometric mean), of several networks."""
    rules = next(iter(records.values()))["ratios"]
    return {rule: {name: record["ratios"][rule]["all"] for name, record in records.items()} for rule in rules}


def across_sets(records: Mapping[str, Mapping], metric: str = "aupr") -> Rows:
    """Score -> a pooled metric on each set that has the score; for AUPR also chance, the base rate."""
    rows: Rows = {}
    for name, record in records.items():
        for score, values in record["protocols"]["pooled"].items():
            rows.setdefault(score, {})[name] = values[metric]
    if metric == "aupr":
        rows["chance"] = {name: record["base_rate"] for name, record in records.items()}
    return rows


def objects(records: Mapping[str, Mapping]) -> Rows:
    """Set -> its objects, their mean sIoU, PPV of the detections, F1, and AUPR by the objects' share of the image."""
    rows: Rows = {}
    for name, record in records.items():
        sizes = {f"AUPR, {size}": row["aupr"] for size, row in record["by_size"].items()}
        rows[name] = {"objects": record["objects"]["count"]}
        rows[name] |= {title: record["objects"][title.lower()] for title in ("sIoU", "PPV", "F1")} | sizes
    return rows


def false_alarms(records: Mapping[str, Mapping], scores: Sequence[str]) -> Rows:
    """Share of normal pixels above the threshold: of all, then by predicted class, the last record's largest first.

    ``records``: place -> record of the SML study; the last one's classes also get their share of its normal pixels.
    """
    place, last = list(records.items())[-1]
    by_class = sorted(last["classes"], key=lambda name: -last["classes"][name]["normal_share"])
    rows: Rows = {"all normal pixels": {}} | {f"predicted {name}": {} for name in by_class}
    for where, record in records.items():
        for score in scores:
            rows["all normal pixels"][f"{score}, {where}"] = record["false_alarms"][score]
            for name in by_class:
                rows[f"predicted {name}"][f"{score}, {where}"] = record["classes"][name][score]
    for name in by_class:
        rows[f"predicted {name}"][f"share of normal, {place}"] = last["classes"][name]["normal_share"]
    return rows


def anomalies_predicted_as(
    predictions: Sequence[Prediction], dataset: RoadDataset, statistics: Mapping[str, Tensor]
) -> Rows:
    """Predicted class -> per cent of the anomalous pixels, largest first, and its mean max logit in training."""
    predicted = np.concatenate([p.classes[p.mask == dataset.anomaly] for p in predictions])
    shares = np.bincount(predicted, minlength=len(dataset.classes)) / len(predicted)
    return {
        dataset.classes[label].name: {
            "% of anomalous pixels": 100 * float(shares[label]),
            "mean max logit": float(statistics["mean"][label]),
        }
        for label in np.argsort(-shares)
    }

"""Measure a road model: closed-set segmentation, and how well each score ranks anomalous pixels.

Protocols, never mixed in one table: ``pooled`` ranks all pixels of the split together; ``per_image`` is the
mean over the images that hold an anomaly, as the StreetHazards authors' script computes it. Both count
every labelled normal pixel as a negative; ``..._ignoring_0_3`` leaves out StreetHazards' labels 0
(unlabeled) and 3 (other), which some papers do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from src import settings, system, training
from src.metrics import (
    ConfusionMatrix,
    ImageHistograms,
    PixelRanking,
    SortedScores,
    bootstrap,
    mean_interval,
    mean_iou,
    metric_from_counts,
)
from src.road.config import Config
from src.road.data import IGNORE, RoadDataset, known_only, open_compatible, paths
from src.road.model import infer
from src.road.objects import ObjectMeter
from src.road.scores import SCORES, TAIL_SHARES, ClassStatistics, Logits, score_maps
from src.road.transforms import evaluation_loader

SCORE_NAMES = (*SCORES, "sml_raw", "sml", "outlier", "combined")
HEADLINE = "combined"  # the score of the headline numbers, chosen on validation images
BASELINE = "max_logit"  # the headline of a model without outlier head or calibration
CALIBRATION_IMAGES = 600  # of a split, at most, evenly spread: more would not move its statistics
QUANTILE = 0.99  # at least this share of the normal validation pixels do not exceed a threshold
PROTOCOL = (
    "mIoU and pixel accuracy: one confusion matrix over the split at the label maps' size, classes that the truth "
    "holds, anomalies and void ignored. Scores: top level = the score named there over all labelled pixels of the "
    "split pooled, labels 0 and 3 counted as negatives; protocols.per_image = mean over images that hold an anomaly; "
    "..._ignoring_0_3 = labels 0 and 3 left out; scores.*.f1: called anomalous is what reaches the threshold, which "
    "99 % of normal validation pixels do not exceed; by_size, objects: of the score named, by connected "
    "components, at that threshold. Intervals: 95 %, 1000 bootstrap resamples of images."
)
METRICS = ("aupr", "auroc", "fpr95", "f1_max")


def each_image(model: nn.Module, dataset, config: Config) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """(logits (1,C,H,W) and outlier score (1,H,W) or None at the mask's size, mask (1,H,W)) of each image, in order."""
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    for batch in evaluation_loader(dataset, config.image_size, batch_size=1):
        batch = training.to_device(batch)
        yield *infer(model, batch["image"], batch["mask"].shape[-2:]), batch["mask"]


def score_names(model: nn.Module, calibration: Mapping | None) -> list[str]:
    """The scores that can be had of a model: SML needs statistics, ``outlier`` its head, ``combined`` tails too."""
    lacking = set() if calibration else {"sml_raw", "sml"}
    lacking |= set() if has_head(model) else {"outlier"}
    lacking |= set() if has_head(model) and (calibration or {}).get("tails") else {"combined"}
    return [name for name in SCORE_NAMES if name not in lacking]


def has_head(model: nn.Module) -> bool:
    return hasattr(model, "outlier_head")


def headline(model: nn.Module, calibration: Mapping | None) -> str:
    """The score that a model's headline numbers come from."""
    return HEADLINE if HEADLINE in score_names(model, calibration) else BASELINE


# -------------------------------------------------------------------------------------- calibration
def calibrate(model: nn.Module, splits: dict[str, RoadDataset], config: Config) -> dict[str, dict]:
    """What scoring needs beside the weights, from anomaly-free data alone.

    ``statistics``: the SML statistics of the train and of the val split, as ``ClassStatistics.compute``
    gives them. For each score, with training statistics, on labelled pixels of val: ``tails``, what ``scores.rarity``
    takes, and ``thresholds``, the ``QUANTILE`` of its values.
    """
    calibration = {"statistics": {}, "tails": {}}
    calibration["statistics"]["train"], _ = _normal_scores(model, splits["train"], config, calibration, ())
    names = score_names(model, calibration)
    calibration["statistics"]["val"], rankings = _normal_scores(model, splits["val"], config, calibration, names)
    calibration["tails"] = {name: _tail(ranking) for name, ranking in rankings.items()}
    if has_head(model):
        rankings |= _normal_scores(model, splits["val"], config, calibration, ("combined",))[1]
        calibration["tails"]["combined"] = _tail(rankings["combined"])
    return calibration | {"thresholds": {name: ranking.quantile(QUANTILE) for name, ranking in rankings.items()}}


def _tail(normal: PixelRanking) -> list[float]:
    """What ``scores.rarity`` takes of the scores of normal pixels."""
    return [normal.quantile(1 - share) for share in TAIL_SHARES]


def _normal_scores(
    model: nn.Module, dataset: RoadDataset, config: Config, calibration: dict, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, PixelRanking]]:
    """The SML statistics of a split without anomalies, and the named scores of its labelled pixels."""
    classes, rankings = ClassStatistics(len(dataset.classes)), {name: PixelRanking() for name in names}
    step = -(-len(dataset) // CALIBRATION_IMAGES)
    for logits, outlier, mask in each_image(model, Subset(dataset, range(0, len(dataset), step)), config):
        logits, normal = Logits(logits), mask != IGNORE
        classes.update(logits)
        for name, score in calibrated_maps(logits, outlier, calibration, names).items():
            rankings[name].update(score[normal], torch.zeros_like(score[normal], dtype=torch.bool))
    return classes.compute(), rankings


def calibrated_maps(
    logits: Tensor | Logits, outlier: Tensor | None, calibration: Mapping | None, names: Iterable[str]
) -> dict[str, Tensor]:
    """``score_maps`` with what they need of a model's calibration, if it has one."""
    if not calibration:
        return score_maps(logits, None, names, outlier)
    return score_maps(logits, calibration["statistics"].get("train"), names, outlier, calibration.get("tails"))


# --------------------------------------------------------------------------------------- evaluation
@dataclass
class Evaluation:
    """``metrics``: a record's entries (fractions); ``curves``: ``PixelRanking.curves``, pooled, by score."""

    metrics: dict[str, Any]
    curves: dict[str, dict[str, np.ndarray]]


def evaluate(
    trained: system.Trained, root: Path | None = None, *, dataset: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """Metrics of a model on a split of its own data set, or of another one (``dataset``), as ``open_compatible``."""
    return evaluate_split(trained, open_compatible(trained.config, dataset, root, split)).metrics


def evaluated(
    trained: system.Trained, root: Path | None, dataset: str | None, split: str
) -> tuple[list[Path], dict[str, Any]]:
    """The files behind what ``evaluate`` measures; a record says no more of them than their fingerprint."""
    return list(paths(open_compatible(trained.config, dataset, root, split))), {}


def evaluate_split(trained: system.Trained, dataset: RoadDataset) -> Evaluation:
    """One pass over a split: segmentation metrics where it has classes, score metrics where it has anomalies.

    Without the calibration that comes with a checkpoint of this project (a bare state dict), SML and the
    fixed thresholds are left out, which is printed.
    """
    calibration = trained.calibration
    names = score_names(trained.model, calibration) if dataset.anomaly is not None else []
    if not calibration:
        print("no calibration in the weights: sml, sml_raw, combined and fixed thresholds are left out")
    elif has_head(trained.model) and not calibration.get("tails"):
        print("the weights were calibrated by an older version: combined is left out; train again to have it")
    thresholds = calibration["thresholds"] if calibration else {}
    meters = {name: _ScoreMeter(thresholds.get(name)) for name in names}
    best = headline(trained.model, calibration)
    objects = ObjectMeter(thresholds.get(best))
    matrices = []
    for logits, outlier, mask in each_image(trained.model, dataset, trained.config):
        logits = Logits(logits)
        if dataset.classes:
            matrices.append(confusion(logits.prediction, mask, dataset).matrix)
        if meters:
            maps = calibrated_maps(logits, outlier, calibration, names)
            _update(meters, maps, mask, dataset)
            objects.update(maps[best][0], mask[0] == dataset.anomaly, mask[0] != IGNORE)
    metrics = {"images": len(dataset)}
    if matrices:
        metrics |= _segmentation_metrics(np.stack(matrices), dataset)
    pooled = {name: meter.pooled() for name, meter in meters.items()}
    if not pooled:
        return Evaluation(metrics, {})
    if not pooled[best].positives:
        print(f"no anomalous pixel in the {dataset.split} split: scores are not measured")
        return Evaluation(metrics, {})
    metrics |= _anomaly_metrics(meters, pooled, best, bool(dataset.optional)) | objects.compute()
    return Evaluation(metrics, {name: ranking.curves() for name, ranking in pooled.items()})


class _ScoreMeter:
    """Everything measured of one score in a pass over a split, one image at a time."""

    def __init__(self, threshold: float | None):
        self.threshold = threshold
        self.required, self.optional = PixelRanking(), PixelRanking()  # optional: labels 0 and 3
        self.per_image: list[list[float]] = []
        self.per_image_required: list[list[float]] = []
        self.histograms = ImageHistograms()
        self.outcomes = np.zeros(3, dtype=np.int64)  # true positives, false positives, false negatives

    def update(self, score: Tensor, anomaly: Tensor, optional: Tensor) -> None:
        """One image's labelled pixels, each (n,); ``optional`` marks labels 0 and 3."""
        image = required = SortedScores(score, anomaly)
        if optional.any():
            required = SortedScores(score[~optional], anomaly[~optional])
            self.optional.update(score[optional], anomaly[optional])
        self.required.add(required)
        self.histograms.add(image)
        positives = len(image.keys[1])
        if positives:
            values = _values(image.ranking())
            self.per_image.append(values)
            self.per_image_required.append(values if required is image else _values(required.ranking()))
        if self.threshold is not None:
            false_alarms, hits = image.reaching(self.threshold)
            self.outcomes += (hits, false_alarms, positives - hits)

    def pooled(self) -> PixelRanking:
        """The ranking of all labelled pixels; ``required`` alone ignores labels 0 and 3."""
        return PixelRanking.merged((self.required, self.optional))

    def at_threshold(self) -> dict[str, float]:
        """Precision, recall and F1 of calling anomalous what reaches the threshold."""
        tp, fp, fn = (float(count) for count in self.outcomes)
        return {
            "threshold": self.threshold,
            "precision": tp / (tp + fp) if tp + fp else float("nan"),
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def _values(metrics: dict) -> list[float]:
    return [metrics[name].value for name in METRICS]


def confusion(prediction: Tensor, mask: Tensor, dataset: RoadDataset) -> ConfusionMatrix:
    """Predicted against true classes of one image, both (1,H,W), anomalies and void ignored."""
    matrix = ConfusionMatrix(len(dataset.classes), IGNORE)
    matrix.update(prediction, known_only(mask, dataset))
    return matrix


def _update(meters: dict[str, _ScoreMeter], maps: dict[str, Tensor], mask: Tensor, dataset: RoadDataset) -> None:
    labelled = (mask != IGNORE).flatten().nonzero()[:, 0]
    labels = mask.flatten()[labelled]
    optional = torch.isin(labels, torch.tensor(dataset.optional, device=mask.device))
    for name, meter in meters.items():
        meter.update(maps[name].flatten().index_select(0, labelled), labels == dataset.anomaly, optional)


def _segmentation_metrics(matrices: np.ndarray, dataset: RoadDataset) -> dict[str, Any]:
    total = ConfusionMatrix(len(dataset.classes), IGNORE)
    total.matrix += matrices.sum(0)
    metrics = total.compute()
    names = [entry.name for entry in dataset.classes]
    return {
        "miou": metrics["miou"],
        "miou_interval": bootstrap(matrices, mean_iou),
        "pixel_accuracy": metrics["pixel_accuracy"],
        "per_class": dict(zip(names, metrics["iou"], strict=True)),
    }


def _anomaly_metrics(
    meters: dict[str, _ScoreMeter], pooled: dict[str, PixelRanking], best: str, has_optional: bool
) -> dict[str, Any]:
    protocols = {
        "pooled": {name: _pooled_row(ranking) for name, ranking in pooled.items()},
        "per_image": {name: _mean_row(meter.per_image) for name, meter in meters.items()},
    }
    if has_optional:
        protocols |= {
            "pooled_ignoring_0_3": {name: _pooled_row(meter.required) for name, meter in meters.items()},
            "per_image_ignoring_0_3": {name: _mean_row(meter.per_image_required) for name, meter in meters.items()},
        }
    scores = {}
    for name, meter in meters.items():
        interval = bootstrap(meter.histograms.counts(), partial(metric_from_counts, "aupr"))
        scores[name] = {"aupr_interval": interval}
        if meter.threshold is not None:
            scores[name] |= meter.at_threshold()
    top = {name: protocols["pooled"][best][name] for name in METRICS}
    return {"score": best, **top, "base_rate": pooled[best].base_rate, "protocols": protocols, "scores": scores}


def _pooled_row(ranking: PixelRanking) -> dict[str, float]:
    metrics = ranking.compute()
    values = {name: metrics[name].value for name in METRICS}
    return values | {"largest_error": max(metrics[name].error for name in METRICS)}


def _mean_row(rows: list[list[float]]) -> dict[str, Any]:
    means = dict(zip(METRICS, np.mean(rows, axis=0).tolist(), strict=True))
    return means | {"aupr_interval": mean_interval([row[0] for row in rows]), "images": len(rows)}

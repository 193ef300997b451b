"""Measure a road model: closed-set segmentation, and how well each score ranks anomalous pixels.

Protocols, never mixed in one table: ``pooled`` ranks all pixels of the split together; ``per_image`` is the
mean over the images that hold an anomaly, as the StreetHazards authors' script computes it. Both count
every labelled normal pixel as a negative; ``..._ignoring_0_3`` leaves out StreetHazards' labels 0
(unlabeled) and 3 (other), which some papers do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from src import settings, training
from src.metrics import (
    ConfusionMatrix,
    ImageHistograms,
    PixelRanking,
    bootstrap,
    mean_interval,
    mean_iou,
    metric_from_counts,
    ranking,
)
from src.road import data
from src.road import model as models
from src.road.scores import SCORES, ClassStatistics, score_maps

SCORE_NAMES = (*SCORES, "sml_raw", "sml", "outlier", "combined")
HEADLINE = "combined"  # the score of the headline numbers, chosen on validation images
BASELINE = "max_logit"  # the headline of a model without outlier head or calibration
QUANTILE = 0.95  # at least this share of the normal validation pixels do not exceed a threshold
PROTOCOL = (
    "mIoU and pixel accuracy: one confusion matrix over the split at the label maps' size, classes that the truth "
    "holds, anomalies and void ignored. Scores: top level = the score named there over all labelled pixels of the "
    "split pooled, labels 0 and 3 counted as negatives; protocols.per_image = mean over images that hold an anomaly; "
    "..._ignoring_0_3 = labels 0 and 3 left out; scores.*.f1: called anomalous is what reaches the threshold, which "
    "95 % of normal validation pixels do not exceed. Intervals: 95 %, 1000 bootstrap resamples of images."
)
KEYS = ("aupr", "auroc", "fpr95", "f1_max")


def each_image(model: nn.Module, dataset, config):
    """(logits (1,C,H,W) and outlier score (1,H,W) or None at the mask's size, mask (1,H,W)) of each image, in order."""
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    for batch in data.evaluation_loader(dataset, config.image_size, batch_size=1):
        batch = training.to_device(batch)
        yield *models.predict(model, batch["image"], batch["mask"].shape[-2:]), batch["mask"]


def score_names(model: nn.Module, calibrated: bool = True) -> list[str]:
    """The scores that can be had of a model: SML needs calibration, ``outlier`` its head, ``combined`` both."""
    lacking = () if calibrated else ("sml_raw", "sml", "combined")
    lacking += () if has_head(model) else ("outlier", "combined")
    return [name for name in SCORE_NAMES if name not in lacking]


def has_head(model: nn.Module) -> bool:
    return hasattr(model, "outlier_head")


def headline(model: nn.Module, calibrated: bool = True) -> str:
    """The score that a model's headline numbers come from."""
    return HEADLINE if HEADLINE in score_names(model, calibrated) else BASELINE


# -------------------------------------------------------------------------------------- calibration
def calibrate(model: nn.Module, sets: dict, config) -> dict:
    """What scoring needs beside the weights, from anomaly-free data alone.

    ``statistics``: the SML statistics of the train and of the val split, as ``ClassStatistics.compute``
    gives them. ``units``, of a model with an outlier head: mean and std of what ``combined`` adds up, on the val
    split's labelled pixels. ``thresholds``: for each score, with training statistics, the ``QUANTILE`` of its values
    there.
    """
    statistics, moments = {}, {name: ClassStatistics(1) for name in ("outlier", "energy") if has_head(model)}
    for split in ("train", "val"):
        accumulator = ClassStatistics(len(sets[split].classes))
        for logits, outlier, mask in each_image(model, sets[split], config):
            accumulator.update(logits)
            if split == "val":
                for name, score in score_maps(logits, None, moments, outlier).items():
                    moments[name].update(score[mask != data.IGNORE][None, None])  # as logits of one class
        statistics[split] = accumulator.compute()
    found = {name: accumulator.compute() for name, accumulator in moments.items()}
    units = {name: [float(row["mean"]), float(row["std"])] for name, row in found.items()}
    rankings = {name: PixelRanking() for name in score_names(model)}
    for logits, outlier, mask in each_image(model, sets["val"], config):
        normal = mask != data.IGNORE
        for name, score in score_maps(logits, statistics["train"], rankings, outlier, units).items():
            rankings[name].update(score[normal], torch.zeros_like(score[normal], dtype=torch.bool))
    thresholds = {name: r.quantile(QUANTILE) for name, r in rankings.items()}
    return {"statistics": statistics, "units": units, "thresholds": thresholds}


# --------------------------------------------------------------------------------------- evaluation
@dataclass
class Evaluation:
    """``metrics``: a record's entries (fractions); ``curves``: ``PixelRanking.curves``, pooled, by score."""

    metrics: dict
    curves: dict[str, dict]


class _ScoreMeter:
    """Everything measured of one score in a pass over a split, one image at a time."""

    def __init__(self, threshold: float | None):
        self.threshold = threshold
        self.kept, self.left_out = PixelRanking(), PixelRanking()  # left out: labels 0 and 3
        self.per_image: dict[bool, list[list[float]]] = {False: [], True: []}
        self.histograms = ImageHistograms()
        self.found = np.zeros(3, dtype=np.int64)  # true positives, false positives, false negatives

    def update(self, score: torch.Tensor, anomaly: torch.Tensor, optional: torch.Tensor) -> None:
        """One image's labelled pixels, each (n,); ``optional`` marks labels 0 and 3."""
        self.kept.update(score[~optional], anomaly[~optional])
        if optional.any():
            self.left_out.update(score[optional], anomaly[optional])
        self.histograms.update(score, anomaly)
        if anomaly.any():
            row = _values(ranking(score, anomaly))
            self.per_image[False].append(row)
            ignoring = _values(ranking(score[~optional], anomaly[~optional])) if optional.any() else row
            self.per_image[True].append(ignoring)
        if self.threshold is not None:
            called = score >= self.threshold
            counts = (called & anomaly, called & ~anomaly, ~called & anomaly)
            self.found += np.array([int(c.sum()) for c in counts])

    def pooled(self) -> PixelRanking:
        """The ranking of all labelled pixels, merged anew; ``kept`` alone ignores labels 0 and 3."""
        total = PixelRanking()
        total.merge(self.kept)
        total.merge(self.left_out)
        return total

    def at_threshold(self) -> dict[str, float]:
        tp, fp, fn = (float(value) for value in self.found)
        return {
            "threshold": self.threshold,
            "precision": tp / (tp + fp) if tp + fp else float("nan"),
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def _values(result: dict) -> list[float]:
    return [result[key].value for key in KEYS]


def evaluate(model: nn.Module, dataset, config, calibration: dict | None) -> Evaluation:
    """One pass over a split: segmentation metrics where it has classes, score metrics where it has anomalies.

    ``calibration`` comes with a checkpoint of this project; without it (a bare state dict) SML and the
    fixed thresholds are left out, which is printed.
    """
    names, best = score_names(model, bool(calibration)), headline(model, bool(calibration))
    if not calibration:
        print("no calibration in the weights: sml, sml_raw, combined and fixed thresholds are left out")
    thresholds = calibration["thresholds"] if calibration else {}
    class_statistics = calibration["statistics"]["train"] if calibration else None
    units = calibration.get("units") if calibration else None  # of a model with an outlier head
    meters = {name: _ScoreMeter(thresholds.get(name)) for name in names} if dataset.anomaly is not None else {}
    matrices = []
    for logits, outlier, mask in each_image(model, dataset, config):
        if dataset.classes:
            matrices.append(_confusion(logits.max(1).indices, mask, dataset).matrix)
        if meters:
            _update(meters, score_maps(logits, class_statistics, names, outlier, units), mask, dataset)
    metrics = {"images": len(dataset)}
    if matrices:
        metrics |= _segmentation_metrics(np.stack(matrices), dataset)
    pooled = {name: meter.pooled() for name, meter in meters.items()}
    if meters and not pooled[best].positives:
        print(f"no anomalous pixel in the {dataset.split} split: scores are not measured")
        pooled = {}
    if pooled:
        metrics |= _anomaly_metrics(meters, pooled, best, bool(dataset.optional))
    return Evaluation(metrics, {name: total.curves() for name, total in pooled.items()})


def _confusion(prediction: torch.Tensor, mask: torch.Tensor, dataset) -> ConfusionMatrix:
    matrix = ConfusionMatrix(len(dataset.classes), data.IGNORE)
    matrix.update(prediction, data.known_only(mask, dataset))
    return matrix


def _update(meters: dict, maps: dict, mask: torch.Tensor, dataset) -> None:
    labelled = mask != data.IGNORE
    optional = torch.isin(mask, torch.tensor(dataset.optional, device=mask.device))[labelled]
    anomaly = (mask == dataset.anomaly)[labelled]
    for name, meter in meters.items():
        meter.update(maps[name][labelled], anomaly, optional)


def _segmentation_metrics(matrices: np.ndarray, dataset) -> dict:
    total = ConfusionMatrix(len(dataset.classes), data.IGNORE)
    total.matrix += matrices.sum(0)
    result = total.compute()
    names = [entry.name for entry in dataset.classes]
    return {
        "miou": result["miou"],
        "miou_interval": bootstrap(matrices, mean_iou),
        "pixel_accuracy": result["pixel_accuracy"],
        "per_class": dict(zip(names, result["iou"], strict=True)),
    }


def _anomaly_metrics(meters: dict[str, _ScoreMeter], pooled: dict, best: str, has_optional: bool) -> dict:
    protocols = {"pooled": {n: _bounded(total.compute()) for n, total in pooled.items()}}
    protocols["per_image"] = {n: _mean(m.per_image[False]) for n, m in meters.items()}
    if has_optional:
        protocols["pooled_ignoring_0_3"] = {n: _bounded(m.kept.compute()) for n, m in meters.items()}
        protocols["per_image_ignoring_0_3"] = {n: _mean(m.per_image[True]) for n, m in meters.items()}
    scores = {}
    for name, meter in meters.items():
        interval = bootstrap(meter.histograms.counts(), partial(metric_from_counts, "aupr"))
        scores[name] = {"aupr_interval": interval}
        if meter.threshold is not None:
            scores[name] |= meter.at_threshold()
    top = {key: protocols["pooled"][best][key] for key in KEYS}
    return {"score": best, **top, "base_rate": pooled[best].base_rate, "protocols": protocols, "scores": scores}


def _bounded(result: dict) -> dict[str, float]:
    values = {key: result[key].value for key in KEYS}
    return values | {"largest_error": max(result[key].error for key in KEYS)}


def _mean(rows: list[list[float]]) -> dict[str, float]:
    means = dict(zip(KEYS, np.mean(rows, axis=0).tolist(), strict=True))
    return means | {"aupr_interval": mean_interval([row[0] for row in rows]), "images": len(rows)}


# ----------------------------------------------------------------------------------- single samples
@dataclass
class Prediction:
    """What a model says of one image; arrays (H,W) at the mask's (or the image's) size."""

    name: str
    image: np.ndarray  # uint8 (H,W,3)
    mask: np.ndarray | None  # uint8 labels
    classes: np.ndarray  # int64 predicted labels
    confidence: np.ndarray  # float32 softmax probability of the predicted class
    logits: torch.Tensor  # (1,C,H,W)
    outlier: torch.Tensor | None = None  # (1,H,W) score, of a model with that head


@torch.inference_mode()
def predict(model: nn.Module, image: np.ndarray, config, mask: np.ndarray | None = None, name: str = "") -> Prediction:
    """Segment one image uint8 (H,W,3)."""
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    tensor = data.preprocess(torch.from_numpy(image).permute(2, 0, 1), config.image_size)
    found = models.predict(model, training.to_device(tensor[None]), image.shape[:2])
    logits, outlier = (part if part is None else part.cpu() for part in found)
    confidence, classes = logits.softmax(1).max(1)
    return Prediction(name, image, mask, classes[0].numpy(), confidence[0].numpy(), logits, outlier)


def predict_samples(model: nn.Module, dataset, config, indices: Sequence[int]) -> list[Prediction]:
    """``predict`` for samples of a data set."""
    samples = [dataset[index] for index in indices]
    return [
        predict(model, s["image"].permute(1, 2, 0).numpy(), config, s["mask"][0].numpy(), s["name"]) for s in samples
    ]


def sample_report(predictions: Sequence[Prediction], dataset) -> tuple[dict, dict]:
    """mIoU, pixel accuracy and mean confidence of each sample, and their mean, std, min and max."""
    rows = {}
    for item in predictions:
        truth = torch.from_numpy(item.mask).long()
        result = _confusion(torch.from_numpy(item.classes), truth, dataset).compute()
        rows[Path(item.name).with_suffix("").as_posix()] = {
            "mIoU": result["miou"],
            "accuracy": result["pixel_accuracy"],
            "confidence": float(item.confidence.mean()),
        }
    table = np.array([list(row.values()) for row in rows.values()])
    columns = list(next(iter(rows.values())))
    summary = {
        label: dict(zip(columns, operation(table, axis=0).tolist(), strict=True))
        for label, operation in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max))
    }
    return rows, summary

"""How well a series' behaviour is predicted, how well probabilities are calibrated, and where attention goes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src import settings, training
from src.labelled import Labelled
from src.series import data
from src.series.config import GENERATED, Config
from src.series.envelope import WIDTH
from src.series.model import Classifier, activation_maps, fit_temperature
from src.system import Trained

BINS = 15  # of confidence
NEAR = 0.05  # of the time axis: how far from an event the activation map's maximum may be
LENGTHS = {"50-99": (50, 99), "300-499": (300, 499), "1000-2000": (1000, 2000), "2001-": (2001, 10**9)}
PROTOCOL = (
    "Every plot of the split counts once; macro averages over classes. Interval: 95 %, 1000 bootstrap resamples of "
    "plots. ece: 15 equal bins of the largest probability, after the temperature. Split val of a cross-validated data "
    "set: each plot by the network of the fold that held it out, its temperature from the other folds."
)


# ------------------------------------------------------------------------------------------ of a model
def evaluate(
    trained: Trained, root: Path | None = None, *, dataset: str | None = None, split: str = "test", column: str = ""
) -> dict[str, Any]:
    """Metrics of a split of the model's own data set, or of another folder of class folders.

    ``column`` of CSV files: see `csv_files.read_csv`.
    """
    config = config_for(trained, dataset or trained.config.dataset)
    root = root or data.default_root(config.dataset)
    plots, probabilities = predict_split(trained, root, config.dataset, split, column)
    metrics = measure(probabilities, plots.labels, plots.classes)
    known = plots.known or data.metadata(root, plots.names, data.folder_of(config, root, split))
    if known:
        metrics |= measure_known(trained.model.members[0], probabilities, plots, known)
    return metrics | {"temperature": float(trained.model.temperature)}


def evaluated(trained: Trained, root: Path, dataset: str, split: str) -> tuple[list[Path], dict[str, Any]]:
    """The files behind a split, none where it is generated; nothing else is to be said of them."""
    config = config_for(trained, dataset)
    if dataset == GENERATED:
        return [], {}
    return data.files(root, data.folder_of(config, root, split), config.classes), {}


def config_for(trained: Trained, dataset: str) -> Config:
    """The model's config for a data set: only of its own have the folds' networks left out any plot."""
    config = trained.config
    return replace(config, dataset=dataset, cross_validate=config.cross_validate and dataset == config.dataset)


def predict_split(
    trained: Trained, root: Path, dataset: str, split: str, column: str = ""
) -> tuple[Labelled, torch.Tensor]:
    """The plots of a split and their probabilities (N,classes), for val by networks that were not trained on them.

    Where the folder holds class folders directly, every plot belongs to the split named. Split val of a data set
    that was cross-validated is all of train.
    """
    config = config_for(trained, dataset)
    folder = data.folder_of(config, root, split)
    if folder == split:
        plots = data.read_split(config, root, split, column)
        return plots, trained.model.probabilities(plots.items)
    if not config.cross_validate:
        plots = data.datasets(config, root, ("train",), column)["val"]
        return plots, trained.model.probabilities(plots.items)
    plots = data.read_split(config, root, folder, column)
    if len(trained.model.members) != config.folds:
        raise settings.InputError(
            f"{trained.source} was trained on all plots of train: evaluate --split test, or --split val with the "
            "networks of the folds, ..._folds.pth"
        )
    fold = data.folds(plots.labels, config.folds, config.seed)
    return plots, held_out_probabilities(trained.model, plots, fold)


def held_out_probabilities(model: Classifier, plots: Labelled, fold: torch.Tensor) -> torch.Tensor:
    """``out_of_fold``, each fold at the temperature that suits the plots of the others."""
    logs = out_of_fold(model, plots, fold)
    others = [fold != k for k in range(len(model.members))]
    temperatures = torch.tensor([fit_temperature(logs[rest], plots.labels[rest]) for rest in others])
    return (logs / temperatures[fold, None]).softmax(1)


def out_of_fold(model: Classifier, plots: Labelled, fold: torch.Tensor) -> torch.Tensor:
    """Log probabilities (N,classes) of each plot by the member that was not trained on it: k left out fold k."""
    logs = torch.empty(len(plots), len(plots.classes))
    for k in range(len(model.members)):
        logs[fold == k] = model.log_probabilities(plots.items[fold == k], [k])
    return logs


def validate(net: nn.Module, plots: Labelled, flips: Sequence[str], config: Config) -> dict[str, float]:
    """``accuracy``, negative log-likelihood ``nll`` and, where events are known, ``hit_rate`` of a net in training."""
    with training.autocast(config):
        logs = Classifier(lambda: net, 1, flips).log_probabilities(plots.items)
        known = measure_known(net, logs, plots, plots.known) if plots.known else {}
    accuracy = (logs.argmax(1) == plots.labels).double().mean()
    metrics = {"accuracy": float(accuracy), "nll": float(F.nll_loss(logs, plots.labels))}
    if "activation" in known:
        metrics["hit_rate"] = known["activation"]["hit_rate"]
    return metrics


# ------------------------------------------------------------------------------------- of probabilities
def measure(probabilities: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of probabilities (N,classes) on labels (N,), which may lack some classes."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    from src.metrics import mean_interval

    predicted, present = probabilities.argmax(1), labels.unique().tolist()
    correct, calibrated = predicted == labels, calibration(probabilities, labels)
    scores = precision_recall_fscore_support(labels, predicted, labels=present, zero_division=0)
    per_class = {
        classes[k]: dict(zip(("precision", "recall", "f1", "plots"), map(float, row), strict=True))
        for k, row in zip(present, zip(*scores, strict=True), strict=True)
    }
    in_best_two = (probabilities.topk(2).indices == labels[:, None]).any(1)
    return {
        "accuracy": float(correct.double().mean()),
        "macro_f1": float(scores[2].mean()),
        "precision": float(scores[0].mean()),
        "recall": float(scores[1].mean()),
        "top2": float(in_best_two.double().mean()),
        "ece": calibrated["ece"],
        "accuracy_interval": mean_interval(correct),
        "reliability": calibrated["bins"],
        "plots": len(labels),
        "chance": 1 / len(classes),
        "per_class": per_class,
        "confusion": confusion_matrix(labels, predicted, labels=range(len(classes))).tolist(),
    }


def calibration(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """``ece`` (Guo et al., arXiv:1706.04599) and, for each bin that holds plots, confidence, accuracy and count."""
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    in_bin = (confidence * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(in_bin, minlength=BINS)
    filled = count > 0
    mean_confidence = (torch.bincount(in_bin, confidence, BINS) / count)[filled]
    accuracy = (torch.bincount(in_bin, correct, BINS) / count)[filled]
    count = count[filled]
    return {
        "ece": float((count * (mean_confidence - accuracy).abs()).sum() / count.sum()),
        "bins": {"confidence": mean_confidence.tolist(), "accuracy": accuracy.tolist(), "count": count.tolist()},
    }


# ---------------------------------------------------------------- of what the generator knows of a series
def measure_known(
    net: nn.Module, probabilities: torch.Tensor, plots: Labelled, known: Sequence[dict]
) -> dict[str, Any]:
    """``lengths``: accuracy by length; ``activation``: hits on the recorded events, if any (``length``, ``events``)."""
    lengths = [row["length"] for row in known]
    metrics: dict[str, Any] = {"lengths": by_length(probabilities.argmax(1) == plots.labels, lengths)}
    eventful = [k for k, row in enumerate(known) if row["events"]]
    if not eventful:
        return metrics
    maps = activation_maps(net, plots.items[eventful])
    near = np.stack([near_events(known[k]["events"], lengths[k], maps.shape[1]) for k in eventful])
    labels = plots.labels[eventful]
    metrics["activation"] = hits(maps, near)
    for label in labels.unique().tolist():
        of_class = labels == label
        metrics["activation"][plots.classes[label]] = hits(maps[of_class], near[of_class.numpy()])
    return metrics


def by_length(correct: torch.Tensor, lengths: Sequence[int]) -> dict[str, float]:
    """Accuracy by the number of samples of the series, for the bands that hold some."""
    lengths = torch.tensor(lengths)
    in_bands = {name: (lengths >= low) & (lengths <= high) for name, (low, high) in LENGTHS.items()}
    return {name: float(correct[in_band].double().mean()) for name, in_band in in_bands.items() if in_band.any()}


def near_events(events: Sequence[tuple[int, int]], length: int, columns: int) -> np.ndarray:
    """Which of the columns of an activation map lie within NEAR of an event (start, stop): bool (columns,)."""
    middles = (np.arange(columns) + 0.5) / columns
    spans = np.array([(start, stop - 1) for start, stop in events]) / (length - 1)
    return ((middles >= spans[:, :1] - NEAR) & (middles <= spans[:, 1:] + NEAR)).any(0)


def event_columns(known: Sequence[dict], columns: int = WIDTH // 16) -> torch.Tensor:
    """Where the events of series (``length`` and ``events``) are: float32 (N,columns), rows of sum 1, or 0 for none."""
    shares = torch.zeros(len(known), columns)
    for row, series in zip(shares, known, strict=True):
        for start, stop in series["events"]:
            scale = columns / series["length"]
            row[int(start * scale) : int((stop - 1) * scale) + 1] = 1
    return shares / shares.sum(1, keepdim=True).clamp(min=1)


def hits(maps: torch.Tensor, near: np.ndarray) -> dict[str, float]:
    """``hit_rate``: share of maps (N,W) whose maximum is ``near`` (N,W) an event; ``chance``: of a uniform place."""
    is_hit = near[np.arange(len(near)), maps.argmax(1).numpy()]
    return {"hit_rate": float(is_hit.mean()), "chance": float(near.mean()), "plots": len(near)}

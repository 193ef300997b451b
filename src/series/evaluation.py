"""How well a series' behaviour is named, how honest the probabilities are, and where the network looks."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import nn
from torch.nn import functional as F

from src import training
from src.metrics import mean_interval
from src.series.data import Labelled
from src.series.envelope import WIDTH
from src.series.model import Classifier, activation_maps, fit_temperature

BINS = 15  # of confidence
NEAR = 0.05  # of the time axis: how far from an event the activation map's maximum may be
LENGTHS = {"50-99": (50, 99), "300-499": (300, 499), "1000-2000": (1000, 2000), "2001-": (2001, 10**9)}
PROTOCOL = (
    "Every plot of the split counts once; macro averages over classes. Interval: 95 %, 1000 bootstrap resamples of "
    "plots. ece: 15 equal bins of the largest probability, after the temperature. Split val of a cross-validated data "
    "set: each plot by the network of the fold that held it out, its temperature from the other folds."
)


def calibration(probabilities: torch.Tensor, labels: torch.Tensor) -> dict:
    """``ece`` (Guo et al., arXiv:1706.04599) and, for each bin that holds plots, confidence, accuracy and count."""
    confidence, named = probabilities.max(1)
    correct = (named == labels).double()
    place = (confidence.double() * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(place, minlength=BINS)
    sums = [torch.bincount(place, values, BINS) for values in (confidence.double(), correct)]
    filled = count > 0
    confident, right = (total[filled] / count[filled] for total in sums)
    return {
        "ece": float((count[filled] * (confident - right).abs()).sum() / count.sum()),
        "bins": {"confidence": confident.tolist(), "accuracy": right.tolist(), "count": count[filled].tolist()},
    }


def measure(probabilities: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> dict:
    """Everything that a record holds of probabilities (N,classes) on labels (N,), which may lack some classes."""
    named, present = probabilities.argmax(1), labels.unique().tolist()
    correct, found = named == labels, calibration(probabilities, labels)
    scores = precision_recall_fscore_support(labels, named, labels=present, zero_division=0)
    best_two = (probabilities.topk(2).indices == labels[:, None]).any(1)
    return {
        "accuracy": float(correct.double().mean()),
        "macro_f1": float(scores[2].mean()),
        "precision": float(scores[0].mean()),
        "recall": float(scores[1].mean()),
        "top2": float(best_two.double().mean()),
        "ece": found["ece"],
        "accuracy_interval": mean_interval(correct),
        "reliability": found["bins"],
        "plots": len(labels),
        "chance": 1 / len(classes),
        "per_class": {classes[k]: dict(zip(("precision", "recall", "f1", "plots"), map(float, row), strict=True))
                      for k, row in zip(present, zip(*scores, strict=True), strict=True)},
        "confusion": confusion_matrix(labels, named, labels=range(len(classes))).tolist(),
    }  # fmt: skip


def out_of_fold(model: Classifier, found: Labelled, fold: torch.Tensor) -> torch.Tensor:
    """Log probabilities (N,classes) of each plot by the member that did not learn from it: k left out fold k."""
    logs = torch.empty(len(found), len(found.classes))
    for k in range(len(model.members)):
        logs[fold == k] = model.log_probabilities(found.items[fold == k], [k])
    return logs


def held_out_probabilities(model: Classifier, found: Labelled, fold: torch.Tensor) -> torch.Tensor:
    """``out_of_fold``, each fold at the temperature that suits the plots of the others."""
    logs = out_of_fold(model, found, fold)
    found_at = [fit_temperature(logs[fold != k], found.labels[fold != k]) for k in range(len(model.members))]
    return (logs / torch.tensor(found_at)[fold, None]).softmax(1)


def validate(net: nn.Module, found: Labelled, flips: Sequence[str], config) -> dict[str, float]:
    """``accuracy``, negative log-likelihood ``nll`` and, where events are known, ``hit_rate`` of a net in training."""
    with training.autocast(config):
        logs = Classifier(lambda: net, 1, flips).log_probabilities(found.items)
        looked = measure_known(net, logs, found, found.known).get("activation") if found.known else None
    accuracy = (logs.argmax(1) == found.labels).double().mean()
    own = {"hit_rate": looked["hit_rate"]} if looked else {}
    return {"accuracy": float(accuracy), "nll": float(F.nll_loss(logs, found.labels))} | own


# ------------------------------------------------------------------- what a generated series knows of itself
def measure_known(net: nn.Module, probabilities: torch.Tensor, found: Labelled, known: Sequence[dict]) -> dict:
    """``lengths``: accuracy by length; ``activation``: hits on the recorded events, if any (``length``, ``events``)."""
    lengths = [row["length"] for row in known]
    eventful = [k for k, row in enumerate(known) if row["events"]]
    measured = {"lengths": by_length(probabilities.argmax(1) == found.labels, lengths)}
    if not eventful:
        return measured
    maps = activation_maps(net, found.items[eventful])
    near = np.stack([near_events(known[k]["events"], lengths[k], maps.shape[1]) for k in eventful])
    of_class = found.labels[eventful]
    by_class = {found.classes[k]: hits(maps[of_class == k], near[(of_class == k).numpy()])
                for k in of_class.unique().tolist()}  # fmt: skip
    return measured | {"activation": hits(maps, near) | by_class}


def by_length(correct: torch.Tensor, lengths: Sequence[int]) -> dict[str, float]:
    """Accuracy by the number of samples of the series, for the bands that hold some."""
    bands = {name: [low <= n <= high for n in lengths] for name, (low, high) in LENGTHS.items()}
    return {name: float(correct[torch.tensor(own)].double().mean()) for name, own in bands.items() if any(own)}


def near_events(events: Sequence[tuple[int, int]], length: int, columns: int) -> np.ndarray:
    """Which of the columns of an activation map lie within NEAR of an event (start, stop): bool (columns,)."""
    places = (np.arange(columns) + 0.5) / columns
    spans = np.array([(start, stop - 1) for start, stop in events]) / (length - 1)
    return ((places >= spans[:, :1] - NEAR) & (places <= spans[:, 1:] + NEAR)).any(0)


def places(known: Sequence[dict], columns: int = WIDTH // 16) -> torch.Tensor:
    """Where the events of series (``length`` and ``events``) are: float32 (N,columns), rows of sum 1, or 0 for none."""
    found = torch.zeros(len(known), columns)
    for row, own in zip(found, known, strict=True):
        for start, stop in own["events"]:
            scale = columns / own["length"]
            row[int(start * scale) : int((stop - 1) * scale) + 1] = 1
    return found / found.sum(1, keepdim=True).clamp(min=1)


def hits(maps: torch.Tensor, near: np.ndarray) -> dict[str, float]:
    """``hit_rate``: share of maps (N,W) whose maximum is ``near`` (N,W) an event; ``chance``: of a uniform place."""
    at = near[np.arange(len(near)), maps.argmax(1).numpy()]
    return {"hit_rate": float(at.mean()), "chance": float(near.mean()), "plots": len(near)}

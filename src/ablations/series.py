"""What the choices of the series system are worth."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from src import series, system
from src.ablations.bench import REMOVED, Bench
from src.labelled import Labelled
from src.series import data, evaluation, generated, numbers
from src.synthetic.series_plots import COUNTS
from src.synthetic.time_series import CLASSES


def evaluate_series(trained: system.Trained) -> dict:
    """Accuracy and ECE on fresh series; of a cross-validated run by the mean of the folds' networks."""
    config = trained.config
    if config.cross_validate:
        trained = system.load(series, trained.source.with_stem(f"{trained.source.stem}_folds"), config)
    plots = _fresh_series(config.backbone, config.size, config.axes)
    return _measured(trained.model.probabilities(plots.items), plots.labels, plots.classes)


@cache
def _fresh_series(backbone: str, size: tuple[int, int], axes: bool) -> Labelled:
    """4,500 series of the validation stream as a network's items, which depend on these settings alone."""
    config = replace(SERIES.base, dataset=series.GENERATED, backbone=backbone, size=size, axes=axes)
    return data.read_split(config, Path(), "val")


def evaluate_plots(trained: system.Trained) -> dict:
    """Accuracy and ECE on the fold of real plots that was held out."""
    plots, probabilities = evaluation.predict_split(trained, data.default_root("plots"), "plots", "val")
    return _measured(probabilities, plots.labels, plots.classes)


def from_numbers(config: series.Config) -> dict:
    """The same training series, and the same fresh ones, classified from their numbers instead of their plots."""
    model = numbers.FromNumbers(config.seed).fit(*numbers.draw_numbers("train", range(COUNTS["train"])))
    fresh, labels = numbers.draw_numbers("val", generated.epoch_numbers(data.DRAWN))
    return _measured(torch.from_numpy(model.probabilities(fresh)), torch.from_numpy(labels), CLASSES)


def _measured(probabilities: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...]) -> dict:
    metrics = evaluation.measure(probabilities, labels, classes)
    return {"metrics": {name: metrics[name] for name in ("accuracy", "ece")}, "scoring": {}}


def _pretraining(count: int, **changes: Any) -> dict:
    """Settings of an earlier training on ``count`` generated series, each seen once."""
    return {"generated": count // len(CLASSES), "epochs": 1, "warmup": 20, **changes}


def _picture(*size: int) -> dict:
    """Settings of a network of pictures; sizes larger than those of the table would train for minutes."""
    return {"backbone": "mobilenet_v2", "epochs": 6, "batch_size": 32, "size": size}


SERIES = Bench(
    system=series,
    base=replace(series.Config.mini(), generated=0, activation_weight=0.0, epochs=14, batch_size=32, warmup=40),
    metrics=("accuracy", "ece"),
    evaluate=evaluate_series,
    labels={"seen": "input", "generated series first": "pretraining on generated series"},
    factors={
        "flips": {
            "none": {"flips": (), "tta": False},
            "in time": {"flips": ("horizontal",)},
            "in time and value": {},
        },
        "noise": {"none": {}, "2 % of the height": REMOVED},
        "cutout": {"none": {}, "20 % of the time": REMOVED},
        "mixup": {"none": {}, "0.2": REMOVED},
        "schedule": {
            "cosine": {},
            "constant": {"schedule": "constant"},
            "plateau, rate 0.001": {"schedule": "plateau", "warmup": 0, "lr": 1e-3},
        },
        "early stopping": {"best of 14 epochs": {}, "after 4 without gain": {"patience": 4}},
        "label smoothing": {"none": {}, "0.1": REMOVED},
        "dropout": {
            "none": {"dropout": (0.0, 0.0, 0.0)},
            "0.1": {},
            "0.3, 0.3, 0.2": {"dropout": (0.3, 0.3, 0.2)},
        },
        "weight decay": {"none": {"weight_decay": 0.0}, "0.01": {}, "0.1": {"weight_decay": 0.1}},
        "generated series first": {
            "none": {},
            "5,000": {"start": _pretraining(5_000)},
            "50,000": {"start": _pretraining(50_000)},
        },
        "seen": {
            "line envelope": {},
            "picture 48 x 64": _picture(48, 64),
            "picture 48 x 64, colours jittered": REMOVED,
            "picture 48 x 64, turned by up to 5 degrees": REMOVED,
            "picture 64 x 96": _picture(64, 96),
            "numbers: summary, boosted trees": from_numbers,
            "numbers: random kernels": REMOVED,
        },
        "networks": {"one": {}, "mean of three folds' networks": {"cross_validate": True, "folds": 3}},
    },
)
PLOTS = Bench(
    system=series,
    base=replace(series.Config.real(), cross_validate=False, epochs=20, lr=3e-3),
    metrics=("accuracy", "ece"),
    evaluate=evaluate_plots,
    labels=SERIES.labels,
    factors={
        "generated series first": {
            "none": {},
            "5,000": {"start": _pretraining(5_000, dataset=series.GENERATED)},
            "1.4 million (committed), then 3 epochs": {"weights": series.PRETRAINED, "epochs": 3, "lr": 1e-4},
        },
    },
)

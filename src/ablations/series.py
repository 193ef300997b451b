"""What the choices of the series system are worth."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from src import series
from src.ablations.bench import REMOVED, Bench
from src.series import numbers
from src.series.data import FIRST_STREAMED
from src.synthetic.series_plots import COUNTS
from src.synthetic.time_series import CLASSES


@cache
def _fresh_series(view_key: tuple) -> Any:
    """4,500 series of the validation stream as a network's items; ``view_key``: the settings that a view depends on."""
    names = ("backbone", "size", "axes")
    config = replace(SERIES.base, dataset=series.GENERATED, **dict(zip(names, view_key, strict=True)))
    return series.read(config, Path(), "val")


def judge_series(trained) -> dict:
    """Accuracy and ECE on fresh series; of a cross-validated run by the mean of the folds' networks."""
    config = trained.config
    if config.cross_validate:
        trained = series.load(trained.source.with_stem(f"{trained.source.stem}_folds"), config)
    found = _fresh_series((config.backbone, config.size, config.axes))
    return _named(trained.model.probabilities(found.items), found)


def judge_plots(trained) -> dict:
    """Accuracy and ECE on the fold of real plots that was held out."""
    found, probabilities = series.judge(trained, series.default_root("plots"), "plots", "val")
    return _named(probabilities, found)


def _named(probabilities, found) -> dict:
    metrics = series.evaluation.measure(probabilities, found.labels, found.classes)
    return {"metrics": {name: metrics[name] for name in ("accuracy", "ece")}, "scoring": {}}


def from_numbers(kind: str, config) -> dict:
    """The same training series, and the same fresh ones, told from their numbers instead of their plots."""
    model = numbers.FromNumbers(kind, config.seed).fit(*numbers.drawn("train", range(COUNTS["train"])))
    fresh, labels = numbers.drawn("val", range(FIRST_STREAMED, FIRST_STREAMED + series.DRAWN))
    metrics = series.evaluation.measure(torch.from_numpy(model.probabilities(fresh)), torch.from_numpy(labels), CLASSES)
    return {"metrics": {name: metrics[name] for name in ("accuracy", "ece")}, "scoring": {}}


def _drawn(count: int) -> dict:
    """Settings of an earlier training on ``count`` generated series, each seen once."""
    return {"generated": count // len(CLASSES), "epochs": 1, "warmup": 20}


_PICTURE = {"backbone": "mobilenet_v2", "epochs": 6, "batch_size": 32}
SERIES = Bench(
    system=series,
    base=replace(series.Config.mini(), generated=0, activation_weight=0.0, epochs=14, batch_size=32, warmup=40),
    metrics=("accuracy", "ece"),
    judge=judge_series,
    factors={
        "flips": {"none": {"flips": (), "tta": False}, "in time": {"flips": ("horizontal",)},
                  "in time and value": {}},
        "noise": {"none": {}, "2 % of the height": REMOVED},
        "cutout": {"none": {}, "20 % of the time": REMOVED},
        "mixup": {"none": {}, "0.2": REMOVED},
        "schedule": {"cosine": {}, "constant": {"schedule": "constant"},
                     "plateau, rate 0.001": {"schedule": "plateau", "warmup": 0, "lr": 1e-3}},
        "early stopping": {"best of 14 epochs": {}, "after 4 without gain": {"patience": 4}},
        "label smoothing": {"none": {}, "0.1": REMOVED},
        "dropout": {"none": {"dropout": (0.0, 0.0, 0.0)}, "0.1": {}, "0.3, 0.3, 0.2": {"dropout": (0.3, 0.3, 0.2)}},
        "weight decay": {"none": {"weight_decay": 0.0}, "0.01": {}, "0.1": {"weight_decay": 0.1}},
        "generated series first": {"none": {}, "5,000": {"start": _drawn(5_000)}, "50,000": {"start": _drawn(50_000)}},
        "seen": {
            "trace": {},
            "picture 48 x 64": _PICTURE | {"size": (48, 64)},
            "picture 48 x 64, colours jittered": REMOVED,
            "picture 48 x 64, turned by up to 5 degrees": REMOVED,
            "picture 64 x 96": _PICTURE | {"size": (64, 96)},  # a larger one would train for minutes
            "numbers: summary, boosted trees": partial(from_numbers, "summary"),
            "numbers: random kernels": partial(from_numbers, "kernels"),
        },
        "networks": {"one": {}, "mean of three folds' networks": {"cross_validate": True, "folds": 3}},
    },
)  # fmt: skip
PLOTS = Bench(
    system=series,
    base=replace(series.Config.real(), cross_validate=False, epochs=20, lr=3e-3),
    metrics=("accuracy", "ece"),
    judge=judge_plots,
    factors={
        "generated series first": {
            "none": {},
            "5,000": {"start": _drawn(5_000) | {"dataset": series.GENERATED}},
            "1.4 million (committed), then 3 epochs": {
                "weights": series.PRETRAINED, "epochs": 3, "lr": 1e-4},
        },
    },
)  # fmt: skip

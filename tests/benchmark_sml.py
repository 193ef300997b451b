"""Takes standardized max logits apart: what each step is worth, and where false alarms come from.

    python -m tests.benchmark_sml --weights FILE [--dataset NAME] [--root DIR] [--split S] [--json OUT]

One pass over a split. ``variants``: pooled AUPR of SML with statistics of train or val, with and without boundary
suppression and smoothing, at the published radii and scaled with the image's height. ``class_mean``: minus the mean max
logit of the *predicted* class alone, which is what standardising takes out of max logit. ``classes``: of the normal
pixels predicted as a class, the share above the threshold that 99 % of normal validation pixels stay below; and of all
anomalous pixels, the share predicted as it. Not collected by pytest.
"""

from itertools import product
from pathlib import Path

import torch

from src import records, road, system
from src.metrics import PixelRanking
from src.road import data
from src.road.evaluation import calibrated_maps, each_image, score_names
from src.road.scores import max_logit, sml
from tests.benchmarking import run

PROTOCOL = (
    "variants: pooled AUPR over all labelled pixels, anomalies against the rest. classes: of the normal pixels "
    "predicted as a class, the share above the threshold that 99 % of normal validation pixels stay below; "
    "normal_share and anomaly_share: how predictions spread over classes. false_alarms: that share of all normal ones."
)
ALARMS = ("max_logit", "sml", "outlier", "combined")


def variants(logits: torch.Tensor, calibration: dict) -> dict[str, torch.Tensor]:
    """Name -> score (1,H,W)."""
    train = calibration["statistics"]["train"]
    maps = {"max_logit": max_logit(logits), "class_mean": -train["mean"].to(logits.device)[logits.max(1).indices]}
    for split, suppress, smooth in product(("train", "val"), (False, True), (False, True)):
        steps = "+".join(name for name, on in (("suppress", suppress), ("smooth", smooth)) if on) or "raw"
        statistics = calibration["statistics"][split]
        maps[f"{split} {steps}"] = sml(logits, statistics, suppress=suppress, smooth=smooth)
    maps["train suppress+smooth, published radii"] = sml(logits, train, scale=False)
    return maps


def measure(trained, samples) -> dict:
    """The record's ``variants`` (where there are anomalies) and ``classes``."""
    classes = [entry.name for entry in data.dataset_class(trained.config.dataset).classes]
    names = [name for name in score_names(trained.model, trained.calibration) if name in ALARMS]
    thresholds, rankings = trained.calibration["thresholds"], {}
    normal, alarms = torch.zeros(len(classes)), {name: torch.zeros(len(classes)) for name in names}
    anomalous = torch.zeros(len(classes))
    for logits, outlier, mask in each_image(trained.model, samples, trained.config):
        known, anomaly = mask != data.IGNORE, mask == (samples.anomaly if samples.anomaly is not None else -1)
        predicted, good = logits.max(1).indices, known & ~anomaly
        normal += predicted[good].bincount(minlength=len(classes)).cpu()
        anomalous += predicted[anomaly].bincount(minlength=len(classes)).cpu()
        maps = calibrated_maps(logits, outlier, trained.calibration, names)
        for name in names:
            called = good & (maps[name] >= thresholds[name])
            alarms[name] += predicted[called].bincount(minlength=len(classes)).cpu()
        if samples.anomaly is not None:
            for name, score in variants(logits, trained.calibration).items():
                rankings.setdefault(name, PixelRanking()).update(score[known], anomaly[known])
    rows = {
        entry: {
            "normal_share": float(normal[i] / normal.sum()),
            "anomaly_share": float(anomalous[i] / anomalous.sum().clamp(min=1)),
            **{name: float(alarms[name][i] / normal[i].clamp(min=1)) for name in names},
        }
        for i, entry in enumerate(classes)
    }
    overall = {name: float(alarms[name].sum() / normal.sum()) for name in names}
    metrics = {"false_alarms": overall, "classes": rows}
    if any(ranking.positives for ranking in rankings.values()):
        metrics["variants"] = {name: ranking.compute()["aupr"].value for name, ranking in rankings.items()}
        metrics["base_rate"] = rankings["max_logit"].base_rate
    return metrics


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    trained = system.load(road, options.weights, road.Config.mini())
    options.dataset = options.dataset or trained.config.dataset
    samples = data.open_split(options.dataset, options.root, options.split)
    with torch.inference_mode():
        metrics = measure(trained, samples)
    files = records.fingerprint(data.paths(samples), samples.root)
    return trained.config.plain(), {"dataset": options.dataset, "split": options.split, **files}, metrics


def show(metrics: dict) -> None:
    for part in ("variants", "false_alarms"):
        print(part, {key: round(value, 4) for key, value in metrics.get(part, {}).items()})


def main() -> None:
    """Records: assets/results/road/*_sml.json."""
    options = {
        "weights": {"type": Path, "required": True},
        "dataset": {"help": "default: the model's own"},
        "root": {"type": Path},
        "split": {"default": "test"},
    }
    run("tests.benchmark_sml", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

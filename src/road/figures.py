"""What the road system draws: label maps, six-panel comparisons, score maps, SML step by step."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from src import plots
from src.metrics import ranking
from src.road import data
from src.road.evaluation import Prediction, headline, predict, predict_samples, sample_report, score_names
from src.road.scores import (
    dilated_smoothing,
    max_logit,
    scaled_dilation,
    scaled_radii,
    score_maps,
    standardized_max_logits,
    suppress_boundaries,
)

CORRECT, WRONG, UNLABELLED = (235, 235, 235), (213, 94, 0), (255, 255, 255)


def legend_handles(dataset) -> list[Patch]:
    """One labelled patch of colour for each class, the anomaly last."""
    entries = [(f"{i} {c.name}", c.color) for i, c in enumerate(dataset.classes)]
    if dataset.anomaly is not None:
        entries.append((f"{dataset.anomaly} anomaly", data.StreetHazards.anomaly_color))
    return [Patch(facecolor=np.array(color) / 255, edgecolor="grey", label=name) for name, color in entries]


def show_legend(dataset) -> Figure:
    """Every class of a data set with its number and colour."""
    handles = legend_handles(dataset)
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 0.3 * -(-len(handles) // 5)))
    axis.axis("off")  # a notebook shows no figure without axes
    figure.legend(handles=handles, ncols=5, loc="center", frameon=False)
    return figure


def plot_samples(dataset, indices: Sequence[int]) -> Figure:
    """Image, label map and both blended, one sample a row."""
    rows = []
    for index in indices:
        sample = dataset[index]
        image = sample["image"].permute(1, 2, 0).numpy()
        colors = data.mask_to_rgb(sample["mask"][0], dataset)
        rows.append([image, colors, plots.overlay(image, colors)])
    return plots.image_grid(rows, ("image", "labels", "overlay"))


def error_map(prediction: Prediction, dataset) -> np.ndarray:
    """Colours (H,W,3): pale where the class is right, vermilion where wrong or anomalous, white unlabelled."""
    colors = np.full((*prediction.mask.shape, 3), CORRECT, dtype=np.uint8)
    colors[prediction.classes != prediction.mask] = WRONG
    colors[prediction.mask == data.IGNORE] = UNLABELLED
    return colors


def six_panels(prediction: Prediction, dataset) -> Figure:
    """Input, truth, prediction; overlay, confidence, error."""
    truth = data.mask_to_rgb(prediction.mask, dataset)
    colors = data.mask_to_rgb(prediction.classes, dataset)
    confidence = prediction.confidence
    panels = {
        "input": prediction.image,
        "truth": truth,
        "prediction": colors,
        "overlay": plots.overlay(prediction.image, colors),
        f"confidence (mean {confidence.mean():.2f})": plots.heat(confidence, 0, 1),
        "error": error_map(prediction, dataset),
    }
    height, width = confidence.shape
    cell = plots.WIDTH / 3
    figure, axes = plt.subplots(2, 3, figsize=(plots.WIDTH, 2 * (cell * height / width + 0.25)))
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(panel)
        axis.set_title(title)
        axis.axis("off")
    return figure


def comparison_grid(predictions: Sequence[Prediction], dataset) -> Figure:
    """Input, truth, prediction and error of several samples, one a row."""
    rows = [
        [
            item.image,
            data.mask_to_rgb(item.mask, dataset),
            data.mask_to_rgb(item.classes, dataset),
            error_map(item, dataset),
        ]
        for item in predictions
    ]
    return plots.image_grid(rows, ("input", "truth", "prediction", "error"))


def score_grid(predictions: Sequence[Prediction], maps: Sequence[dict[str, torch.Tensor]], dataset) -> Figure:
    """Input with the anomaly's outline, then one score map a column; each map on its own 1st..99th percentile."""
    rows = []
    for item, scores in zip(predictions, maps, strict=True):
        panels = [plots.outline(item.image, item.mask == dataset.anomaly) if item.mask is not None else item.image]
        for score in scores.values():
            values = score[0].numpy()
            panels.append(plots.heat(values, *np.percentile(values, (1, 99))))
        rows.append(panels)
    return plots.image_grid(rows, ("input", *(name.replace("_", " ") for name in maps[0])))


def sml_stages(logits: torch.Tensor, statistics: dict) -> dict[str, torch.Tensor]:
    """Max logit -> standardized -> boundary suppressed -> smoothed, each a score (1,H,W)."""
    height, prediction = logits.shape[-2], logits.max(1).indices
    standardized = standardized_max_logits(logits, statistics)
    suppressed = suppress_boundaries(standardized, prediction, scaled_radii(height))
    return {
        "max_logit": max_logit(logits),
        "standardized": standardized,
        "boundary_suppressed": suppressed,
        "smoothed": dilated_smoothing(suppressed, dilation=scaled_dilation(height)),
    }


def logit_distributions(
    logits: Sequence[torch.Tensor], masks: Sequence[np.ndarray], dataset, classes: Sequence[data.LabelClass] = ()
) -> Figure:
    """Max logit by predicted class (5th..95th percentile, median), normal pixels beside anomalous ones.

    ``classes`` are the model's where the data set names none.
    """
    names = [entry.name for entry in dataset.classes or classes]
    values = np.concatenate([x.max(1).values.flatten().numpy() for x in logits])
    predicted = np.concatenate([x.max(1).indices.flatten().numpy() for x in logits])
    truth = np.concatenate([mask.ravel() for mask in masks])
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    groups = {"normal": (truth != dataset.anomaly) & (truth != data.IGNORE), "anomalous": truth == dataset.anomaly}
    for shift, (name, group) in zip((-0.17, 0.17), groups.items(), strict=True):
        shown = [c for c in range(len(names)) if (group & (predicted == c)).sum() >= 20]
        if not shown:
            continue
        quantiles = np.array([np.percentile(values[group & (predicted == c)], (5, 50, 95)) for c in shown])
        at = np.array(shown) + shift
        axis.vlines(at, quantiles[:, 0], quantiles[:, 2], color=plots.COLORS[name == "anomalous"], linewidth=3)
        axis.plot(at, quantiles[:, 1], "o", color=plots.COLORS[name == "anomalous"], label=name)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set(ylabel="max logit", xlabel="predicted class")
    axis.legend()
    return figure


# ------------------------------------------------------------------------------------------ to files
def write_prediction(trained, file: Path, out: Path) -> dict:
    """Overlay and score map of one image file, and what to know of them."""
    image = data.read_image(file)
    item = predict(trained.model, image, trained.config, name=file.name)
    kind = data.DATASETS[trained.config.dataset]
    best = headline(trained.model, bool(trained.calibration))
    score = maps_of(trained, item, (best,))[best][0].numpy()
    written = {
        "overlay": plots.overlay(image, data.mask_to_rgb(item.classes, kind)),
        best: plots.heat(score, *np.percentile(score, (1, 99))),
    }
    out.mkdir(parents=True, exist_ok=True)
    row = {"image": str(file)}
    for name, picture in written.items():
        path = out / f"{file.stem}_{name}.png"
        Image.fromarray(picture).save(path)
        row[name] = str(path)
    row["mean_confidence"] = round(float(item.confidence.mean()), 4)
    row["max_score"] = round(float(score.max()), 4)
    if trained.calibration:
        threshold = trained.calibration["thresholds"][best]
        row |= {"threshold": round(threshold, 4), "share_above_threshold": round(float((score >= threshold).mean()), 4)}
    return row


def maps_of(trained, item: Prediction, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """``score_maps`` of a prediction, with what they need of the model's calibration, if there is one."""
    found = trained.calibration or {"statistics": {"train": None}}
    return score_maps(item.logits, found["statistics"]["train"], names, item.outlier, found.get("units"))


def spread(count: int, dataset) -> list[int]:
    """Indices of ``count`` samples evenly spread over a data set: chosen by position, not by result."""
    return np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()


def failures(predictions: Sequence[Prediction], dataset, count: int) -> list[Prediction]:
    """The predictions of lowest mIoU, worst first."""
    rows, _ = sample_report(predictions, dataset)
    order = np.argsort([row["mIoU"] for row in rows.values()])
    return [predictions[i] for i in order[:count]]


def found_and_missed(trained, dataset, count: int = 2) -> Figure:
    """The images whose anomalies the headline score ranks best (by AUPR), and worst, with outline and score map."""
    best, order = headline(trained.model), []
    for index in range(len(dataset)):
        (item,) = predict_samples(trained.model, dataset, trained.config, [index])
        score = maps_of(trained, item, (best,))[best][0]
        mask = torch.from_numpy(item.mask)
        known = mask != data.IGNORE
        if (mask == dataset.anomaly).any():
            order.append((ranking(score[known], mask[known] == dataset.anomaly)["aupr"].value, index))
    order.sort(reverse=True)
    shown = order[:count] + order[max(count, len(order) - count) :]
    items = predict_samples(trained.model, dataset, trained.config, [index for _, index in shown])
    maps = [maps_of(trained, item, ("max_logit", best)) for item in items]
    figure = score_grid(items, maps, dataset)
    for axis, (aupr, _) in zip(figure.axes[:: len(maps[0]) + 1], shown, strict=True):
        axis.text(0.02, 0.97, f"AUPR {aupr:.2f}", transform=axis.transAxes, va="top", color="white",
                  bbox={"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0})  # fmt: skip
    return figure


def draw_all(trained, name: str, sets: dict) -> list[Path]:
    """Qualitative figures and failures of each split, score maps of the test split, learning curves.

    The score maps have no SML where the weights came without calibration.
    """
    drawn = {}
    for split, dataset in sets.items():
        predictions = predict_samples(trained.model, dataset, trained.config, spread(10, dataset))
        if dataset.classes:
            drawn[f"{split}_six"] = six_panels(predictions[len(predictions) // 2], dataset)
            drawn[f"{split}_grid"] = comparison_grid(predictions[::3], dataset)
            drawn[f"{split}_failures"] = comparison_grid(failures(predictions, dataset, 2), dataset)
        if dataset.anomaly is not None and split == "test":
            known = score_names(trained.model, bool(trained.calibration))
            names = [name for name in ("max_logit", "sml", "outlier", "combined") if name in known]
            maps = [maps_of(trained, item, names) for item in predictions[::3]]
            drawn["scores"] = score_grid(predictions[::3], maps, dataset)
            known_classes = data.dataset_class(trained.config.dataset).classes
            drawn["logits"] = logit_distributions(
                [item.logits for item in predictions], [item.mask for item in predictions], dataset, known_classes
            )
            if trained.calibration:
                drawn["found"] = found_and_missed(trained, dataset)
    if trained.history and name == trained.config.dataset:
        best = max(trained.history, key=lambda row: row["miou"])["epoch"]
        drawn["curves"] = plots.learning_curves(trained.history, ("miou", "pixel_accuracy"), best)
    return [plots.save(figure, f"road/{name}_{key}") for key, figure in drawn.items()]

"""What the road system draws: label maps, six-panel comparisons, score maps, SML step by step."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from src import plots, system
from src.backbones import denormalize
from src.metrics import ranking
from src.road import outliers
from src.road.config import Config
from src.road.data import (
    ANOMALY_COLOR,
    IGNORE,
    LabelClass,
    RoadDataset,
    dataset_class,
    mask_to_rgb,
    open_compatible,
)
from src.road.evaluation import headline, score_names
from src.road.prediction import Prediction, predict_samples, prediction_maps, sample_report
from src.road.scores import (
    dilated_smoothing,
    max_logit,
    scaled_dilation,
    scaled_radii,
    standardized_max_logits,
    suppress_boundaries,
)
from src.road.transforms import Augment

CORRECT, WRONG, UNLABELLED = (235, 235, 235), (213, 94, 0), (255, 255, 255)
SHOWN_SCORES = ("max_logit", "sml", "outlier", "combined")


def draw(trained: system.Trained, root: Path | None, dataset: str) -> dict[str, Figure]:
    """Qualitative figures and failures of val and test, score maps of the test split, learning curves.

    The score maps have no SML where the weights came without calibration.
    """
    drawn = {}
    for split in dataset_class(dataset).splits:
        if split != "train":
            drawn |= _draw_split(trained, open_compatible(trained.config, dataset, root, split))
    if trained.history and dataset == trained.config.dataset:
        best = max(trained.history, key=lambda row: row["miou"])["epoch"]
        drawn["curves"] = plots.learning_curves(trained.history, ("miou", "pixel_accuracy"), best)
    return drawn


def _draw_split(trained: system.Trained, dataset: RoadDataset) -> dict[str, Figure]:
    drawn, split = {}, dataset.split
    predictions = predict_samples(trained, dataset, spread(10, dataset))
    if dataset.classes:
        drawn[f"{split}_six"] = six_panels(predictions[len(predictions) // 2], dataset)
        drawn[f"{split}_grid"] = comparison_grid(predictions[::3], dataset)
        drawn[f"{split}_failures"] = comparison_grid(failures(predictions, dataset, 2), dataset)
    if dataset.anomaly is not None and split == "test":
        available = score_names(trained.model, bool(trained.calibration))
        names = [name for name in SHOWN_SCORES if name in available]
        maps = [prediction_maps(trained, prediction, names) for prediction in predictions[::3]]
        drawn["scores"] = score_grid(predictions[::3], maps, dataset)
        drawn["logits"] = logit_distributions(predictions, dataset, dataset_class(trained.config.dataset).classes)
        if trained.calibration:
            drawn["found"] = best_and_worst(trained, dataset)
    return drawn


def spread(count: int, dataset: RoadDataset) -> list[int]:
    """Indices of ``count`` samples evenly spread over a data set: chosen by position, not by result."""
    return np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()


def failures(predictions: Sequence[Prediction], dataset: RoadDataset, count: int) -> list[Prediction]:
    """The predictions of lowest mIoU, worst first."""
    rows, _ = sample_report(predictions, dataset)
    order = np.argsort([row["mIoU"] for row in rows.values()])
    return [predictions[index] for index in order[:count]]


# ------------------------------------------------------------------------------------------ label maps
def legend_handles(dataset: RoadDataset) -> list[Patch]:
    """One labelled patch of colour for each class, the anomaly last."""
    colors = {f"{label} {entry.name}": entry.color for label, entry in enumerate(dataset.classes)}
    if dataset.anomaly is not None:
        colors[f"{dataset.anomaly} anomaly"] = ANOMALY_COLOR
    return [Patch(facecolor=np.array(color) / 255, edgecolor="grey", label=name) for name, color in colors.items()]


def show_legend(dataset: RoadDataset) -> Figure:
    """Every class of a data set with its number and colour."""
    handles = legend_handles(dataset)
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 0.3 * -(-len(handles) // 5)))
    axis.axis("off")  # a notebook shows no figure without axes
    figure.legend(handles=handles, ncols=5, loc="center", frameon=False)
    return figure


def plot_samples(dataset: RoadDataset, indices: Sequence[int]) -> Figure:
    """Image, label map and both blended, one sample a row."""
    rows = []
    for index in indices:
        sample = dataset[index]
        image = sample["image"].permute(1, 2, 0).numpy()
        colors = mask_to_rgb(sample["mask"][0], dataset)
        rows.append([image, colors, plots.overlay(image, colors)])
    return plots.image_grid(rows, ("image", "labels", "overlay"))


def error_map(prediction: Prediction) -> np.ndarray:
    """Colours (H,W,3): pale where the class is right, vermilion where wrong or anomalous, white unlabelled."""
    colors = np.full((*prediction.mask.shape, 3), CORRECT, dtype=np.uint8)
    colors[prediction.classes != prediction.mask] = WRONG
    colors[prediction.mask == IGNORE] = UNLABELLED
    return colors


def six_panels(prediction: Prediction, dataset: RoadDataset) -> Figure:
    """Input, truth, prediction; overlay, confidence, error."""
    colors = mask_to_rgb(prediction.classes, dataset)
    confidence = prediction.confidence
    panels = {
        "input": prediction.image,
        "truth": mask_to_rgb(prediction.mask, dataset),
        "prediction": colors,
        "overlay": plots.overlay(prediction.image, colors),
        f"confidence (mean {confidence.mean():.2f})": plots.heat(confidence, 0, 1),
        "error": error_map(prediction),
    }
    height, width = confidence.shape
    row_height = plots.WIDTH / 3 * height / width + 0.25
    figure, axes = plt.subplots(2, 3, figsize=(plots.WIDTH, 2 * row_height))
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        axis.imshow(panel)
        axis.set_title(title)
        axis.axis("off")
    return figure


def comparison_grid(predictions: Sequence[Prediction], dataset: RoadDataset) -> Figure:
    """Input, truth, prediction and error of several samples, one a row."""
    rows = []
    for prediction in predictions:
        truth, classes = (mask_to_rgb(labels, dataset) for labels in (prediction.mask, prediction.classes))
        rows.append([prediction.image, truth, classes, error_map(prediction)])
    return plots.image_grid(rows, ("input", "truth", "prediction", "error"))


# ---------------------------------------------------------------------------------------------- scores
def score_grid(
    predictions: Sequence[Prediction], maps: Sequence[dict[str, torch.Tensor]], dataset: RoadDataset
) -> Figure:
    """Input with the anomaly's outline, then one score map a column; each map on its own 1st..99th percentile."""
    rows = []
    for prediction, scores in zip(predictions, maps, strict=True):
        image, mask = prediction.image, prediction.mask
        panels = [image if mask is None else plots.outline(image, mask == dataset.anomaly)]
        for score in scores.values():
            values = score[0].numpy()
            panels.append(plots.heat(values, *np.percentile(values, (1, 99))))
        rows.append(panels)
    return plots.image_grid(rows, ("input", *(name.replace("_", " ") for name in maps[0])))


def pasted_examples(dataset: RoadDataset, config: Config, indices: Sequence[int]) -> Figure:
    """Training views of the outlier head, each beside the mask of what was pasted into it."""
    augment = Augment(config.augmentation, len(dataset.classes), config.image_size, config.crop_size)
    paste = outliers.PastedAnomalies(augment, outliers.JITTERED_SHARE)
    panels = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for index in indices:
            view = paste(dataset[index])
            pixels = (255 * denormalize(view["image"]).clamp(0, 1)).byte()
            panels += [pixels.permute(1, 2, 0).numpy(), plots.heat(np.float32(view["mask"] == 1), 0, 1)]
    return plots.image_grid([panels], len(indices) * ("training view", "pasted pixels"))


def sml_stages(logits: torch.Tensor, statistics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
    predictions: Sequence[Prediction], dataset: RoadDataset, classes: Sequence[LabelClass] = ()
) -> Figure:
    """Max logit by predicted class (5th..95th percentile, median), normal pixels beside anomalous ones.

    ``classes`` are the model's where the data set names none.
    """
    names = [entry.name for entry in dataset.classes or classes]
    maxima = [prediction.logits.max(1) for prediction in predictions]
    values = np.concatenate([maximum.values.flatten().numpy() for maximum in maxima])
    predicted = np.concatenate([maximum.indices.flatten().numpy() for maximum in maxima])
    truth = np.concatenate([prediction.mask.ravel() for prediction in predictions])
    anomalous = truth == dataset.anomaly
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    _draw_quantiles(axis, values, predicted, ~anomalous & (truth != IGNORE), -0.17, plots.COLORS[0], "normal")
    _draw_quantiles(axis, values, predicted, anomalous, 0.17, plots.COLORS[1], "anomalous")
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set(ylabel="max logit", xlabel="predicted class")
    axis.legend()
    return figure


def _draw_quantiles(axis, values, predicted, group, shift: float, color: str, label: str) -> None:
    """Of the values (N,) of a group, bool (N,): 5th to 95th percentile and median of each class with enough pixels."""
    labels = [index for index, count in enumerate(np.bincount(predicted[group])) if count >= 20]
    if not labels:
        return
    quantiles = np.array([np.percentile(values[group & (predicted == index)], (5, 50, 95)) for index in labels])
    position = np.array(labels) + shift
    axis.vlines(position, quantiles[:, 0], quantiles[:, 2], color=color, linewidth=3)
    axis.plot(position, quantiles[:, 1], "o", color=color, label=label)


def best_and_worst(trained: system.Trained, dataset: RoadDataset, count: int = 2) -> Figure:
    """The images whose anomalies the headline score ranks best (by AUPR), and worst, with outline and score map."""
    best = headline(trained.model)
    auprs = _image_auprs(trained, dataset, best)
    order = sorted(auprs, key=auprs.get, reverse=True)
    shown = order[:count] + order[max(count, len(order) - count) :]
    predictions = predict_samples(trained, dataset, shown)
    maps = [prediction_maps(trained, prediction, ("max_logit", best)) for prediction in predictions]
    figure = score_grid(predictions, maps, dataset)
    box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
    for axis, index in zip(figure.axes[:: len(maps[0]) + 1], shown, strict=True):
        label = f"AUPR {auprs[index]:.2f}"
        axis.text(0.02, 0.97, label, transform=axis.transAxes, va="top", color="white", bbox=box)
    return figure


def _image_auprs(trained: system.Trained, dataset: RoadDataset, score_name: str) -> dict[int, float]:
    """Index -> AUPR of each image with anomalies."""
    auprs = {}
    for index in range(len(dataset)):
        (prediction,) = predict_samples(trained, dataset, [index])
        anomalous, labelled = prediction.mask == dataset.anomaly, prediction.mask != IGNORE
        if anomalous.any():
            score = prediction_maps(trained, prediction, (score_name,))[score_name][0].numpy()
            auprs[index] = ranking(score[labelled], anomalous[labelled])["aupr"].value
    return auprs

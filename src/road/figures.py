"""What the road system draws: label maps, six-panel comparisons, score maps, SML step by step."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from src import plots, system
from src.backbones import denormalize
from src.metrics import SortedScores
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
from src.road.prediction import (
    ALARM,
    Prediction,
    predict_samples,
    prediction_maps,
    sample_report,
    score_map,
)
from src.road.scores import (
    TAIL_SHARES,
    dilated_smoothing,
    max_logit,
    rarity,
    scaled_dilation,
    scaled_radii,
    standardized_max_logits,
    suppress_boundaries,
)
from src.road.transforms import Augment

CORRECT, WRONG, UNLABELLED = (235, 235, 235), (213, 94, 0), (255, 255, 255)
SHOWN_SCORES = ("max_logit", "sml", "outlier", "combined")
RARITY_TICKS = {f"{100 * share:g} %": -math.log(share) for share in (0.01, 0.001, 0.0001)}
LEGEND_COLUMNS = 7


def data_flow() -> Figure:
    """The system as a diagram: what is trained, and how an image becomes a score."""
    places = {
        "image": (0, 0.5),
        "backbone": (1, 0.5),
        "ASPP": (2, 0),
        "decoder": (2.9, 0.3),
        "logits": (3.8, 0),
        "MSP, entropy, max logit, SML": (5.5, 0),
        "outlier head": (2.5, 1),
        "energy": (4.4, 0.6),
        "combined": (5.4, 1),
        "threshold": (6.4, 1),
    }
    arrows = [
        ("image", "backbone"),
        ("backbone", "ASPP"),
        ("ASPP", "decoder"),
        ("backbone", "decoder"),
        ("decoder", "logits"),
        ("logits", "MSP, entropy, max logit, SML"),
        ("logits", "energy"),
        ("backbone", "outlier head"),
        ("outlier head", "combined"),
        ("energy", "combined"),
        ("combined", "threshold"),
    ]
    return plots.flow_diagram(places, arrows, trained=("backbone", "ASPP", "decoder", "outlier head"))


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
        available = score_names(trained.model, trained.calibration)
        names = [name for name in SHOWN_SCORES if name in available]
        drawn["scores"] = score_grid(trained, predictions[::3], names, dataset)
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
def add_legend(figure: Figure, dataset: RoadDataset) -> Figure:
    """The figure, made higher by a legend below its label maps: number, name and colour of every class."""
    colors = {f"{label} {entry.name}": entry.color for label, entry in enumerate(dataset.classes)}
    if dataset.anomaly is not None:
        colors[f"{dataset.anomaly} anomaly"] = ANOMALY_COLOR
    handles = [Patch(facecolor=np.array(color) / 255, edgecolor="grey", label=name) for name, color in colors.items()]
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(handles) // LEGEND_COLUMNS))
    figure.legend(handles=handles, ncols=LEGEND_COLUMNS, loc="outside lower center", fontsize=7.5, frameon=False)
    return figure


def plot_samples(dataset: RoadDataset, indices: Sequence[int]) -> Figure:
    """Image, label map and both blended, one sample a row."""
    rows = []
    for index in indices:
        sample = dataset[index]
        image = sample["image"].permute(1, 2, 0).numpy()
        colors = mask_to_rgb(sample["mask"][0], dataset)
        rows.append([image, colors, plots.overlay(image, colors)])
    return add_legend(plots.image_grid(rows, ("image", "labels", "overlay")), dataset)


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
    return add_legend(figure, dataset)


def comparison_grid(predictions: Sequence[Prediction], dataset: RoadDataset) -> Figure:
    """Input, truth, prediction and error of several samples, one a row."""
    rows = []
    for prediction in predictions:
        truth, classes = (mask_to_rgb(labels, dataset) for labels in (prediction.mask, prediction.classes))
        rows.append([prediction.image, truth, classes, error_map(prediction)])
    return add_legend(plots.image_grid(rows, ("input", "truth", "prediction", "error")), dataset)


# ---------------------------------------------------------------------------------------------- scores
def score_grid(
    trained: system.Trained, predictions: Sequence[Prediction], names: Sequence[str], dataset: RoadDataset
) -> Figure:
    """Input with the anomaly's outline, the named scores by ``score_map``, and what the last finds at its threshold.

    Precision and recall are those of the picture.
    """
    maps = [prediction_maps(trained, prediction, names) for prediction in predictions]
    tails = score_tails(trained, maps)
    rows, notes = [], []
    for prediction, scores in zip(predictions, maps, strict=True):
        pictures = [score_map(prediction.image, scores[name], tails[name]) for name in names]
        rarest = rarity(scores[names[-1]], tails[names[-1]])[0].numpy()
        found, note = detection(prediction, rarest >= ALARM, dataset)
        rows.append([plots.outline(prediction.image, prediction.mask == dataset.anomaly), *pictures, found])
        notes.append(note)
    titles = [name.replace("_", " ") for name in names]
    figure = plots.image_grid(rows, ("input", *titles, f"{titles[-1]}: found"))
    for axis, note in zip(figure.axes[len(names) + 1 :: len(names) + 2], notes, strict=True):
        _note(axis, note)
    plots.add_scale(figure, RARITY_TICKS, "share of normal validation pixels that score as high")
    plots.add_outcomes(figure)
    return figure


def score_tails(trained: system.Trained, maps: Sequence[dict[str, Tensor]]) -> dict[str, Sequence[float]]:
    """The calibration's tails; for weights without calibration, those of the pictures shown."""
    if trained.calibration and trained.calibration.get("tails"):
        return trained.calibration["tails"]
    levels = 1 - np.array(TAIL_SHARES)
    return {name: np.quantile(np.stack([scores[name] for scores in maps]), levels).tolist() for name in maps[0]}


def detection(prediction: Prediction, called: np.ndarray, dataset: RoadDataset) -> tuple[np.ndarray, str]:
    """What a threshold finds in one image, ``called`` bool (H,W): picture, and its precision and recall in words."""
    truth, ignored = prediction.mask == dataset.anomaly, prediction.mask == IGNORE
    hits, calls = np.count_nonzero(called & truth), np.count_nonzero(called & ~ignored)
    note = f"precision {hits / max(calls, 1):.2f}\nrecall {hits / max(np.count_nonzero(truth), 1):.2f}"
    return plots.outcomes(prediction.image, called, truth, ignored), note


def _note(axis, text: str) -> None:
    """White on black in the upper left corner of a picture."""
    box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0}
    axis.text(0.02, 0.97, text, transform=axis.transAxes, va="top", color="white", fontsize=7, bbox=box)


def pasted_examples(dataset: RoadDataset, config: Config, indices: Sequence[int]) -> Figure:
    """Training views of the outlier head, each beside the mask of what was pasted into it."""
    augment = Augment(config.augmentation, len(dataset.classes), config.image_size, config.crop_size)
    paste = outliers.PastedAnomalies(augment, dataset.classes, outliers.JITTERED_SHARE)
    panels = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for index in indices:
            view = paste(dataset[index])
            pixels = (255 * denormalize(view["image"]).clamp(0, 1)).byte()
            panels += [pixels.permute(1, 2, 0).numpy(), plots.heat(np.float32(view["mask"] == 1), 0, 1)]
    return plots.image_grid([panels], len(indices) * ("training view", "pasted pixels"))


def sml_steps(trained: system.Trained, prediction: Prediction, dataset: RoadDataset) -> Figure:
    """SML's steps on one image: max logit -> standardized -> boundary suppressed -> smoothed, by ``score_map``."""
    logits, tails = prediction.logits, trained.calibration["tails"]
    height, classes = logits.shape[-2], logits.max(1).indices
    standardized = standardized_max_logits(logits, trained.calibration["statistics"]["train"])
    suppressed = suppress_boundaries(standardized, classes, scaled_radii(height))
    smoothed = dilated_smoothing(suppressed, dilation=scaled_dilation(height))
    steps = {
        "max logit": (max_logit(logits), tails["max_logit"]),
        "standardized": (standardized, tails["sml_raw"]),
        "boundary suppressed": (suppressed, tails["sml_raw"]),
        "smoothed": (smoothed, tails["sml"]),
    }
    pictures = [score_map(prediction.image, score, tail) for score, tail in steps.values()]
    outlined = plots.outline(prediction.image, prediction.mask == dataset.anomaly)
    return plots.image_grid([[outlined, *pictures]], ("input", *steps))


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
    best = headline(trained.model, trained.calibration)
    auprs = _image_auprs(trained, dataset, best)
    order = sorted(auprs, key=auprs.get, reverse=True)
    shown = order[:count] + order[max(count, len(order) - count) :]
    predictions = predict_samples(trained, dataset, shown)
    names = list(dict.fromkeys(("max_logit", best)))
    figure = score_grid(trained, predictions, names, dataset)
    columns = len(names) + 2
    for axis, index in zip(figure.axes[: columns * len(shown) : columns], shown, strict=True):
        _note(axis, f"AUPR {auprs[index]:.2f}")
    return figure


def _image_auprs(trained: system.Trained, dataset: RoadDataset, score_name: str) -> dict[int, float]:
    """Index -> AUPR of each image with anomalies."""
    auprs = {}
    for index in range(len(dataset)):
        (prediction,) = predict_samples(trained, dataset, [index])
        anomalous, labelled = prediction.mask == dataset.anomaly, prediction.mask != IGNORE
        if anomalous.any():
            score = prediction_maps(trained, prediction, (score_name,))[score_name][0].numpy()
            auprs[index] = SortedScores(score[labelled], anomalous[labelled]).ranking()["aupr"].value
    return auprs

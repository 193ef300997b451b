"""What a model says of single images, of a data set or of any file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from src import files, plots, settings, system, training
from src.images import read_image
from src.road.data import RoadDataset, dataset_class, mask_to_rgb
from src.road.evaluation import QUANTILE, calibrated_maps, confusion, headline
from src.road.model import infer
from src.road.scores import TAIL_SHARES, rarity
from src.road.transforms import preprocess

ALARM = -math.log(1 - QUANTILE)  # rarity of a score at its threshold
RAREST = -math.log(TAIL_SHARES[-1])  # rarity from which on a map is brightest


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
def predict_image(
    trained: system.Trained, image: np.ndarray, mask: np.ndarray | None = None, name: str = ""
) -> Prediction:
    """Segment one image uint8 (H,W,3)."""
    model = trained.model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    pixels = preprocess(torch.from_numpy(image).permute(2, 0, 1), trained.config.image_size)
    logits, outlier = infer(model, training.to_device(pixels[None]), image.shape[:2])
    logits, outlier = logits.cpu(), outlier if outlier is None else outlier.cpu()
    confidence, classes = logits.softmax(1).max(1)
    return Prediction(name, image, mask, classes[0].numpy(), confidence[0].numpy(), logits, outlier)


def predict_samples(trained: system.Trained, dataset: RoadDataset, indices: Sequence[int]) -> list[Prediction]:
    """``predict_image`` for samples of a data set."""
    samples = [dataset[index] for index in indices]
    return [
        predict_image(trained, sample["image"].permute(1, 2, 0).numpy(), sample["mask"][0].numpy(), sample["name"])
        for sample in samples
    ]


def prediction_maps(trained: system.Trained, prediction: Prediction, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Scores (1,H,W) of a prediction by name."""
    return calibrated_maps(prediction.logits, prediction.outlier, trained.calibration, names)


def score_map(image: np.ndarray, score: torch.Tensor, tail: Sequence[float]) -> np.ndarray:
    """Colours (H,W,3) of a score (1,H,W): the image in grey, coloured from the threshold up, brighter the rarer."""
    return plots.above_threshold(image, rarity(score, tail)[0].numpy(), ALARM, RAREST)


def sample_report(predictions: Sequence[Prediction], dataset: RoadDataset) -> tuple[dict, dict]:
    """mIoU, pixel accuracy and mean confidence of each sample, and their mean, std, min and max."""
    rows = {}
    for prediction in predictions:
        truth = torch.from_numpy(prediction.mask).long()
        metrics = confusion(torch.from_numpy(prediction.classes), truth, dataset).compute()
        rows[Path(prediction.name).with_suffix("").as_posix()] = {
            "mIoU": metrics["miou"],
            "accuracy": metrics["pixel_accuracy"],
            "confidence": float(prediction.confidence.mean()),
        }
    table = np.array([list(row.values()) for row in rows.values()])
    columns = list(next(iter(rows.values())))
    summaries = {"mean": table.mean(0), "std": table.std(0), "min": table.min(0), "max": table.max(0)}
    return rows, {label: dict(zip(columns, values.tolist(), strict=True)) for label, values in summaries.items()}


# ------------------------------------------------------------------------------------------ to files
def predict(trained: system.Trained, image_files: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write ``<stem>_overlay.png`` and ``<stem>_<score>.png`` for each image file; one summary row each."""
    return [_write_prediction(trained, file, out) for file in image_files]


def _write_prediction(trained: system.Trained, file: Path, out: Path) -> dict[str, Any]:
    prediction = predict_image(trained, read_image(file), name=file.name)
    calibration = trained.calibration or {}
    best = headline(trained.model, calibration)
    scores = prediction_maps(trained, prediction, (best,))[best]
    score = scores[0].numpy()
    colors = mask_to_rgb(prediction.classes, dataset_class(trained.config.dataset))
    pictures = {"overlay": plots.overlay(prediction.image, colors)}
    if calibration.get("tails"):
        pictures[best] = score_map(prediction.image, scores, calibration["tails"][best])
    else:  # no threshold to tie the colours to
        pictures[best] = plots.heat(score, *np.percentile(score, (1, 99)))
    row = {"image": str(file)}
    for name, picture in pictures.items():
        path = out / f"{file.stem}_{name}.png"
        with files.atomic(path) as opened:
            Image.fromarray(picture).save(opened, format="PNG", compress_level=4)
        row[name] = str(path)
    row["mean_confidence"] = round(float(prediction.confidence.mean()), 4)
    row["max_score"] = round(float(score.max()), 4)
    if calibration:
        threshold = calibration["thresholds"][best]
        row["threshold"] = round(threshold, 4)
        row["share_above_threshold"] = round(float((score >= threshold).mean()), 4)
    return row

"""What a model says of single images, of a data set or of any file."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from src import files, plots, settings, system, training
from src.images import read_image
from src.road.data import RoadDataset, dataset_class, mask_to_rgb
from src.road.evaluation import QUANTILE, calibrated_maps, confusion, headline
from src.road.model import infer
from src.road.scores import TAIL_SHARES, rarity
from src.road.transforms import preprocess

ALARM = -math.log(1 - QUANTILE)  # rarity of a score at its threshold
BATCH_PIXELS = 1_000_000  # of images that go through the network together: bounds the memory of their logits
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
def predict_images(
    trained: system.Trained, images: Iterable[tuple[str, np.ndarray, np.ndarray | None]]
) -> Iterator[Prediction]:
    """Segment images in order, each with its name, pixels uint8 (H,W,3) and mask.

    Neighbours of one size go through the network together, at most ``BATCH_PIXELS`` at a time.
    """
    model = trained.model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    for (height, width, _), of_size in groupby(images, lambda image: image[1].shape):
        while batch := list(islice(of_size, max(1, BATCH_PIXELS // (height * width)))):
            pixels = [torch.from_numpy(image).permute(2, 0, 1) for _, image, _ in batch]
            pixels = preprocess(torch.stack(pixels), trained.config.image_size)
            logits, outliers = infer(model, training.to_device(pixels), (height, width))
            logits, outliers = logits.cpu(), outliers if outliers is None else outliers.cpu()
            confidence, classes = (part.numpy() for part in logits.softmax(1).max(1))
            for k, (name, image, mask) in enumerate(batch):
                outlier = outliers if outliers is None else outliers[k : k + 1]
                yield Prediction(name, image, mask, classes[k], confidence[k], logits[k : k + 1], outlier)


def predict_samples(trained: system.Trained, dataset: RoadDataset, indices: Sequence[int]) -> list[Prediction]:
    """``predict_images`` for samples of a data set."""
    samples = (dataset[index] for index in indices)
    images = ((s["name"], s["image"].permute(1, 2, 0).numpy(), s["mask"][0].numpy()) for s in samples)
    return list(predict_images(trained, images))


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
    images = ((file.name, read_image(file), None) for file in image_files)
    bar = tqdm(image_files, "predicting", leave=False, disable=len(image_files) < 2 or None)
    predictions = zip(bar, predict_images(trained, images), strict=True)
    return [_write_prediction(trained, file, prediction, out) for file, prediction in predictions]


def _write_prediction(trained: system.Trained, file: Path, prediction: Prediction, out: Path) -> dict[str, Any]:
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

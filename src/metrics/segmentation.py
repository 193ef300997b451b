"""How well a segmentation fits: a confusion matrix over a whole split, and the IoU of its classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from src.metrics.distributed import from_every_rank


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """IoU of every class, float64 (..., K), from confusion matrices (..., K, K) whose rows are the truth.

    NaN for a class that the truth does not hold, even if predicted: the split cannot measure it. The pixels
    wrongly given to it still count, as misses of their true classes.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    truth, hits = matrix.sum(axis=-1), np.diagonal(matrix, axis1=-2, axis2=-1)
    union = truth + matrix.sum(axis=-2) - hits
    return np.divide(hits, union, out=np.full(truth.shape, np.nan), where=truth > 0)


def mean_iou(matrix: np.ndarray) -> np.ndarray:
    """Mean of `class_iou` over the classes that the truth holds, float64 (...); NaN if it holds none."""
    iou = class_iou(matrix)
    classes = np.isfinite(iou).sum(-1)
    return np.divide(np.nansum(iou, -1), classes, out=np.full(classes.shape, np.nan), where=classes > 0)


class ConfusionMatrix:
    """Pixel counts over a whole split; `matrix` is int64 (K, K), rows = truth, columns = prediction."""

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes, self.ignore = num_classes, ignore
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels of int64 `prediction` and `target`, of one shape, whose target is not `ignore`.

        Raises ValueError if the shapes differ or a counted pixel holds anything but 0..num_classes-1.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ")
        counted = target != self.ignore
        truth, guess = target[counted], prediction[counted]
        for name, labels in (("target", truth), ("prediction", guess)):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)]
            if len(wrong):
                known = f"classes are 0..{self.num_classes - 1}, only a target {self.ignore} is ignored"
                raise ValueError(f"{name} holds the label {wrong[0].item()}: {known}; remap the labels first")
        pairs = (truth.long() * self.num_classes + guess).cpu().numpy()
        self.matrix += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.matrix.shape)

    def all_reduce(self) -> None:
        """Sum over all ranks, once, at the end; without a process group there is nothing to do."""
        self.matrix = sum(from_every_rank(self.matrix))

    def compute(self) -> dict[str, Any]:
        """`miou` and `pixel_accuracy`, fractions, and `iou`, a list of K; `class_iou` explains the NaNs."""
        total, iou = int(self.matrix.sum()), class_iou(self.matrix).tolist()
        accuracy = float(np.trace(self.matrix)) / total if total else float("nan")
        return {"miou": float(mean_iou(self.matrix)), "pixel_accuracy": accuracy, "iou": iou}

"""Which of a few image files is the odd one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from src import settings
from src.files import atomic
from src.sets import data, evaluation, features, figures
from src.sets.sampling import Sets
from src.system import Trained


def predict(trained: Trained, files: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """A row for each of the image files with its score, and ``set.png`` below ``out``."""
    head = trained.model.head
    if len(files) < 3:
        raise settings.InputError(f"{len(files)} images: the odd one of three or more can be told")
    if len(files) != getattr(head, "size", len(files)):
        raise settings.InputError(f"these weights are for sets of {head.size} images, not {len(files)}")
    images = data.from_files(files, trained.config.image_size)
    indices = torch.arange(len(files))[None]
    scores = evaluation.scores_of(head, features.extract(trained.model.encoder, images), indices)
    figure = figures.sets_grid(images, Sets(indices, scores.argmax(1)), scores)
    with atomic(out / "set.png") as file:
        figure.savefig(file, format="png")
    plt.close(figure)
    return [
        {
            "filename": str(file),
            "score": float(score),
            "probability": float(probability),
            "is_odd": bool(score == scores.max()),
        }
        for file, score, probability in zip(files, scores[0], scores[0].softmax(0), strict=True)
    ]

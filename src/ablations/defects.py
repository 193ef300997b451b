"""What the choices of the defects system are worth."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from src import defects, settings
from src.ablations.bench import FRESH_SEED, Bench, fresh_root
from src.defects.evaluation import Meter, auroc, samples, scored
from src.defects.scores import HEADLINE
from src.synthetic import textures
from src.system import Trained

TEACHER_SETTINGS = ("teacher_epochs", "teacher_lr", "descriptor", "compactness", "compactness_weight")
POOLING = {"maximum": 1, "mean of the top 20 pixels": 20, "mean of the top 200 pixels": 200}


def train_defects(config: defects.Config, *, weights: Path | None, run_dir: Path, out: Path) -> Trained:
    """Teachers are shared by the variants and seeds that ask for the same one."""
    if config.teacher_images != "mini/defects/teacher":  # the one distilled from ImageNet's pictures is committed
        return defects.train(config, weights=weights, run_dir=run_dir, out=out)
    name = "_".join(str(getattr(config, setting)) for setting in TEACHER_SETTINGS)
    return defects.train(config, run_dir=run_dir, out=out, teachers=settings.RUNS_DIR / "ablations" / "teachers" / name)


def evaluate_defects(trained: Trained) -> dict[str, Any]:
    """``evaluate_on`` fresh parts."""
    root = fresh_root("defects")
    textures.write_dataset(root, FRESH_SEED)
    return evaluate_on(trained, root)


def evaluate_on(trained: Trained, root: Path) -> dict[str, Any]:
    """Image AUROC and AUPRO on a test split, and what each score and each way to an image score is worth there."""
    ((category, images),) = samples(trained, root, None, "test").items()
    items = list(scored(trained, category, images))
    metrics = Meter.of(items).compute(trained.extras["thresholds"][category])
    truth = np.array([item.is_anomalous for item in items])
    maps = [item.maps[HEADLINE].flatten() for item in items]
    image_scores = {
        name: np.array([float(score.topk(count).values.mean()) for score in maps]) for name, count in POOLING.items()
    }
    return {
        "metrics": {name: metrics[name] for name in ("image_auroc", "aupro")},
        "scoring": {
            "score": {name: row["image_auroc"] for name, row in metrics["scores"].items()},
            "image score": {name: auroc(truth, scores) for name, scores in image_scores.items()},
        },
    }


_IMAGENET_TEACHER = {
    name: value
    for name, value in asdict(defects.Config.real()).items()
    if name.startswith("teacher_") or name in ("pretrained", "patches_per_image")
} | {"backbone": "squeezenet1_0"}
DEFECTS = Bench(
    system=defects,
    base=replace(defects.Config.mini(), categories=("fabric",), crop_size=72, epochs=15, teacher_epochs=12),
    metrics=("image_auroc", "aupro"),
    evaluate=evaluate_defects,
    train=train_defects,
    baseline={"score": HEADLINE, "image score": "maximum"},
    factors={
        "patch size": {
            "17": {"patch_sizes": (17,)},
            "33": {},
            "65": {"patch_sizes": (65,)},
            "17, 33 and 65": {"patch_sizes": (17, 33, 65)},
        },
        "students": {"1": {"students": 1}, "3": {}, "5": {"students": 5}},
        "compactness": {"off": {"compactness_weight": 0.0}, "mean": {}, "sum": {"compactness": "sum"}},
        "descriptor": {"32": {"descriptor": 32}, "128": {}, "512": {"descriptor": 512}},
        "teacher": {
            "distilled": {},
            "distilled on ImageNet's photographs": _IMAGENET_TEACHER,
            "random": {"teacher_epochs": 1, "teacher_lr": 0.0},
        },
    },
)

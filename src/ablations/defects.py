"""What the choices of the defects system are worth."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from src import defects, settings
from src.ablations.bench import FRESH_SEED, Bench, fresh_root
from src.defects import scores
from src.synthetic import textures


def train_defects(config, *, weights, run_dir: Path, out: Path):
    """Teachers are shared by the variants and seeds that ask for the same one."""
    if config.teacher_images != "mini/defects/teacher":  # the one distilled from ImageNet's pictures is committed
        return defects.train(config, weights=weights, run_dir=run_dir, out=out)
    folder = settings.RUNS_DIR / "ablations" / "teachers" / "_".join(
        str(getattr(config, name)) for name in ("teacher_epochs", "teacher_lr", "descriptor", "compactness",
                                                "compactness_weight"))  # fmt: skip
    return defects.train(config, run_dir=run_dir, out=out, teachers=folder)


def judge_defects(trained) -> dict:
    """Image AUROC and AUPRO on fresh parts, and what each score and each way to an image score is worth."""
    root = fresh_root("defects")
    textures.write_dataset(root, FRESH_SEED)
    return _judge_maps(trained, defects.samples(trained.config, root, None, "test"))


def _judge_maps(trained, parts: dict) -> dict:
    ((category, images),) = parts.items()
    items = list(
        defects.evaluation.scored(trained.model, category, images, trained.calibration[category], trained.config)
    )
    found = defects.evaluation.Meter.of(items).compute(trained.thresholds[category])
    truth = np.array([item.is_anomalous for item in items])
    maps = [item.maps[scores.HEADLINE].flatten() for item in items]
    pooling = {"maximum": 1, "mean of the top 20 pixels": 20, "mean of the top 200 pixels": 200}
    return {
        "metrics": {name: found[name] for name in ("image_auroc", "aupro")},
        "scoring": {
            "score": {name: row["image_auroc"] for name, row in found["scores"].items()},
            "image score": {
                name: defects.evaluation.auroc(truth, np.array([float(m.topk(k).values.mean()) for m in maps]))
                for name, k in pooling.items()
            },
        },
    }  # fmt: skip


_IMAGENET_TEACHER = {
    name: value
    for name, value in asdict(defects.Config.real()).items()
    if name.startswith("teacher_") or name in ("backbone", "pretrained", "patches_per_image")
}
DEFECTS = Bench(
    system=defects,
    base=replace(defects.Config.mini(), categories=("fabric",), crop_size=72, epochs=15, teacher_epochs=12),
    metrics=("image_auroc", "aupro"),
    judge=judge_defects,
    train=train_defects,
    baseline={"score": scores.HEADLINE, "image score": "maximum"},
    factors={
        "patch size": {"17": {"patch_sizes": (17,)}, "33": {}, "65": {"patch_sizes": (65,)},
                       "17, 33 and 65": {"patch_sizes": (17, 33, 65)}},
        "students": {"1": {"students": 1}, "3": {}, "5": {"students": 5}},
        "compactness": {"off": {"compactness_weight": 0.0}, "mean": {}, "sum": {"compactness": "sum"}},
        "descriptor": {"32": {"descriptor": 32}, "128": {}, "512": {"descriptor": 512}},
        "teacher": {"distilled": {}, "distilled on ImageNet's photographs": _IMAGENET_TEACHER,
                    "random": {"teacher_epochs": 1, "teacher_lr": 0.0}},
    },
)  # fmt: skip

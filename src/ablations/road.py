"""What the choices of the road system are worth."""

from dataclasses import replace
from functools import partial

from src import road, system
from src.ablations.bench import FRESH_SEED, REMOVED, Bench, fresh_root
from src.metrics import PixelRanking
from src.road.data import RoadDataset, open_split
from src.road.evaluation import each_image
from src.road.scores import sml
from src.synthetic import street_scenes


def evaluate_road(trained: system.Trained) -> dict:
    """mIoU and AUPR on fresh scenes, and what the scores and the parts of SML are worth there."""
    root = fresh_root("road")
    street_scenes.write_dataset(root, {"train": 1, "val": 1, "test": 48}, seed=FRESH_SEED)
    metrics = road.evaluate(trained, root)
    pooled = {name: row["aupr"] for name, row in metrics["protocols"]["pooled"].items()}
    return {
        "metrics": {"aupr": pooled["max_logit"], "miou": metrics["miou"]},
        "scoring": {"score": pooled, "SML": sml_parts(trained, open_split("mini", root, "test"))},
    }


def sml_parts(trained: system.Trained, dataset: RoadDataset) -> dict[str, float]:
    """Pooled AUPR of SML as published, and with one part of it changed or left out."""
    statistics = trained.calibration["statistics"]
    parts = {
        "in full": partial(sml, statistics=statistics["train"]),
        "statistics of val": partial(sml, statistics=statistics["val"]),
        "no suppression": partial(sml, statistics=statistics["train"], suppress=False),
        "no smoothing": partial(sml, statistics=statistics["train"], smooth=False),
        "neither": partial(sml, statistics=statistics["train"], suppress=False, smooth=False),
    }
    rankings = {name: PixelRanking() for name in parts}
    for logits, _, mask in each_image(trained.model, dataset, trained.config):
        for name, score in parts.items():
            rankings[name].update(score(logits), mask == dataset.anomaly)
    return {name: ranking.compute()["aupr"].value for name, ranking in rankings.items()}


ROAD = Bench(
    system=road,
    base=replace(road.Config.mini(), image_size=(90, 160), output_stride=16, epochs=6, warmup=50, outlier_epochs=0),
    metrics=("aupr", "miou"),
    evaluate=evaluate_road,
    baseline={"score": "max_logit", "SML": "in full"},
    factors={
        "augmentation": {
            "none": {"augmentation": "none"},
            "flip": {"augmentation": "flip"},
            "flip and colour (the course's)": {},
            "moderate": {"augmentation": "moderate", "crop_size": (90, 160)},
            "heavy": {"augmentation": "heavy", "crop_size": (90, 160)},
            "scale only": {"augmentation": "scale", "crop_size": (90, 160)},
        },
        "auxiliary head": {"on": {}, "off": {"aux_weight": 0.0}},
        "class weights": {"1/sqrt(share)": {}, "none": {"balance": False}},
        "loss": {"cross-entropy": {}, "focal": REMOVED},
        "image size": {"45 x 80": {"image_size": (45, 80)}, "90 x 160": {}},  # a larger one would train for minutes
    },
)

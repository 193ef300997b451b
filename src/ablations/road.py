"""What the choices of the road system are worth."""

from dataclasses import replace
from functools import partial

from src import road
from src.ablations.bench import FRESH_SEED, REMOVED, Bench, fresh_root
from src.metrics import PixelRanking
from src.road.scores import sml
from src.synthetic import street_scenes


def judge_road(trained) -> dict:
    """mIoU and AUPR on fresh scenes, and what the scores and the parts of SML are worth there."""
    root = fresh_root("road")
    street_scenes.write_dataset(root, {"train": 1, "val": 1, "test": 48}, seed=FRESH_SEED)
    found = road.evaluate(trained.config, trained.model, root, calibration=trained.calibration).metrics
    pooled = {name: row["aupr"] for name, row in found["protocols"]["pooled"].items()}
    return {
        "metrics": {"aupr": pooled["max_logit"], "miou": found["miou"]},
        "scoring": {
            "score": pooled,
            "SML": _sml_parts(trained, road.datasets(trained.config, root, ("test",))["test"]),
        },
    }


def _sml_parts(trained, dataset) -> dict[str, float]:
    """Pooled AUPR of SML as published, and with one part of it changed or left out."""
    train, val = (trained.calibration["statistics"][split] for split in ("train", "val"))
    parts = {
        "in full": partial(sml, statistics=train),
        "statistics of val": partial(sml, statistics=val),
        "no suppression": partial(sml, statistics=train, suppress=False),
        "no smoothing": partial(sml, statistics=train, smooth=False),
        "neither": partial(sml, statistics=train, suppress=False, smooth=False),
    }
    rankings = {name: PixelRanking() for name in parts}
    for logits, _, mask in road.evaluation.each_image(trained.model, dataset, trained.config):
        for name, score in parts.items():
            rankings[name].update(score(logits), mask == dataset.anomaly)
    return {name: ranking.compute()["aupr"].value for name, ranking in rankings.items()}


ROAD = Bench(
    system=road,
    base=replace(road.Config.mini(), image_size=(90, 160), output_stride=16, epochs=6, warmup=50, outlier_epochs=0),
    metrics=("aupr", "miou"),
    judge=judge_road,
    baseline={"score": "max_logit", "SML": "in full"},
    factors={
        "augmentation": {
            "none": {"augmentation": "none"},
            "flip": {"augmentation": "flip"},
            "flip and colour (user)": {},
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

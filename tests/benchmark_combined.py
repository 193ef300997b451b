"""Weighs energy against the outlier head on validation images: how the combined score's one number was chosen.

    python -m tests.benchmark_combined --weights FILE [--root DIR] [--images 48] [--json OUT]

Two kinds of anomaly, neither from a test split. ``pasted``: those of ``tests.benchmark_outliers``. ``left_out``: each
known class that covers less than a tenth of the validation pixels in turn, its logit taken away: what is left does not
know it, although the features still do, so the truth lies between the two kinds. Pooled AUPR at every second pixel,
and its ratio to max logit's: for ``left_out`` the geometric mean over classes, ``both`` that of the two kinds. Not
collected by pytest.
"""

import math
from pathlib import Path

import torch
from torch.utils.data import Subset

from src import records, road, system, training
from src.metrics import PixelRanking
from src.road import data
from src.road.evaluation import each_image
from src.road.model import infer
from src.road.scores import energy, max_logit
from src.road.transforms import preprocess
from tests.benchmark_outliers import anomalous
from tests.benchmarking import run

WEIGHTS = (0, 0.25, 0.5, 1, 2, 4)  # of energy, in standard deviations, where the head's is 1
PROTOCOL = "pooled AUPR over labelled validation pixels (every second row and column), and its ratio to max logit's"
COMMON = 0.1  # share of pixels above which a class is no anomaly


def candidates(logits: torch.Tensor, outlier: torch.Tensor, units: dict) -> dict[str, torch.Tensor]:
    """Name -> score (1,H,W)."""
    scores = {"outlier": outlier, "energy": energy(logits)}
    scaled = {name: (score - units[name][0]) / units[name][1] for name, score in scores.items()}
    sums = {f"outlier + {weight} energy": scaled["outlier"] + weight * scaled["energy"] for weight in WEIGHTS}
    return {"max_logit": max_logit(logits), "energy": scaled["energy"]} | sums


def auprs(items, units: dict) -> dict[str, float]:
    """Of (logits, outlier, labelled, anomaly) a image: candidate -> pooled AUPR."""
    rankings: dict[str, PixelRanking] = {}
    for logits, outlier, labelled, anomaly in items:
        for name, score in candidates(logits, outlier, units).items():
            rankings.setdefault(name, PixelRanking()).update(score[labelled], anomaly[labelled])
    return {name: ranking.compute()["aupr"].value for name, ranking in rankings.items()}


@torch.inference_mode()
def pasted(trained, val, count: int):
    for image, mask in anomalous(trained, val, count):
        pixels = preprocess(torch.from_numpy(image).permute(2, 0, 1), trained.config.image_size)
        logits, outlier = infer(trained.model, training.to_device(pixels[None]), mask.shape)
        truth = torch.from_numpy(mask)[None, ::2, ::2]
        yield logits[..., ::2, ::2].cpu(), outlier[..., ::2, ::2].cpu(), truth != data.IGNORE, truth == 1


def seen(trained, val, count: int) -> list[tuple]:
    """(logits, outlier, mask) of validation images at even distances."""
    some = Subset(val, range(0, len(val), max(1, len(val) // count)))
    with torch.inference_mode():
        images = each_image(trained.model, some, trained.config)
        return [tuple(part[..., ::2, ::2].cpu() for part in image) for image in images]


def left_out(images: list[tuple], classes, units: dict) -> dict[str, dict[str, float]]:
    """Class that is not common -> candidate -> pooled AUPR of its pixels by logits without it."""
    labels = torch.cat([mask[mask != data.IGNORE] for *_, mask in images]).bincount(minlength=len(classes))
    by_class = {}
    for index, entry in enumerate(classes):
        if 0 < labels[index] < COMMON * labels.sum():
            rest = [k for k in range(len(classes)) if k != index]
            by_class[entry.name] = auprs(
                ((logits[:, rest], outlier, mask != data.IGNORE, mask == index) for logits, outlier, mask in images),
                units,
            )
    return by_class


def measure(trained, root: Path | None, count: int) -> dict:
    """``pasted``, ``left_out``: candidate -> AUPR; ``ratios``: candidate -> {pasted, left_out, both}."""
    val = road.datasets(trained.config, root, ("val",))["val"]
    units = trained.calibration["units"]
    by_class = left_out(seen(trained, val, count), val.classes, units)
    of_pasted = auprs(pasted(trained, val, count), units)
    ratios = {}
    for name, value in of_pasted.items():
        semantic = [math.log(row[name] / row["max_logit"]) for row in by_class.values()]
        kinds = {"pasted": value / of_pasted["max_logit"], "left_out": math.exp(sum(semantic) / len(semantic))}
        ratios[name] = kinds | {"both": math.sqrt(kinds["pasted"] * kinds["left_out"])}
    return {"pasted": of_pasted, "left_out": by_class, "ratios": ratios}


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    trained = system.load(road, options.weights, road.Config.mini())
    data = {"dataset": trained.config.dataset, "split": "val, with artificial anomalies or a class left out"}
    return trained.config.plain(), data, measure(trained, options.root, options.images)


def show(metrics: dict) -> None:
    print(records.table(metrics["ratios"], corner="ratio to max logit"))


def main() -> None:
    """Records: assets/results/road/*_combined.json."""
    options = {
        "weights": {"type": Path, "required": True},
        "root": {"type": Path},
        "images": {"type": int, "default": 48},
    }
    run("tests.benchmark_combined", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

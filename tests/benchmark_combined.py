"""Compares rules that join the outlier head's score with energy, on validation images: how `combined` was chosen.

    python -m tests.benchmark_combined --weights FILE [--root DIR] [--camvid DIR] [--images 48] [--json OUT]

Kinds of anomaly, none from a test split. ``pasted``: those of ``tests.benchmark_outliers``. ``small``: the same
objects, 2 to 8 % of the image high, standing on the road. With ``--camvid`` both also on CamVid's validation frames,
for a network trained on other streets: another town and camera. ``left_out``: each known class that covers less than a
tenth of the validation pixels in turn, its logit taken away: what is left does not know it, although the features
still do. Pooled AUPR (at every second pixel but for ``small``), and its ratio to max logit's: for ``left_out`` the
geometric mean over classes, ``all`` that of the kinds. Not collected by pytest.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from scipy.stats import gmean
from torch import Tensor
from torch.utils.data import Subset

from src import records, road, system, training
from src.metrics import PixelRanking
from src.road import data
from src.road.evaluation import each_image
from src.road.model import infer
from src.road.scores import energy, max_logit, rarity
from src.road.transforms import preprocess
from tests.benchmark_outliers import anomalous
from tests.benchmarking import run

WEIGHTS = (0.5, 1, 2)  # of energy, where the head's is 1
PROTOCOL = "pooled AUPR over labelled validation pixels, and its ratio to max logit's, by kind of artificial anomaly"
COMMON = 0.1  # share of pixels above which a class is no anomaly

Images = list[tuple[Tensor, Tensor, Tensor]]  # logits (1,C,H,W), outlier score (1,H,W) and mask (1,H,W) of each


class Candidates:
    """Rules that join two scores, in the units of normal validation pixels."""

    def __init__(self, normal: Images, tails: dict):
        self.tails, self.units = tails, {}
        for name, score in (("outlier", lambda _, outlier: outlier), ("energy", lambda logits, _: energy(logits))):
            values = torch.cat([score(logits, outlier)[mask != data.IGNORE] for logits, outlier, mask in normal])
            self.units[name] = (values.mean(), values.std())

    def __call__(self, logits: Tensor, outlier: Tensor) -> dict[str, Tensor]:
        """Name -> score (1,H,W)."""
        scores = {"outlier": outlier, "energy": energy(logits)}
        standard = {name: (score - self.units[name][0]) / self.units[name][1] for name, score in scores.items()}
        rare = {name: rarity(score, self.tails[name]) for name, score in scores.items()}
        sums = {f"standard scores, energy x {w}": standard["outlier"] + w * standard["energy"] for w in WEIGHTS}
        sums |= {f"rarities, energy x {w}": rare["outlier"] + w * rare["energy"] for w in WEIGHTS}
        largest = {"larger rarity": torch.maximum(rare["outlier"], rare["energy"])}
        return {"max_logit": max_logit(logits)} | scores | sums | largest


def auprs(images: Iterable[tuple[Tensor, Tensor, Tensor]], candidates: Candidates) -> dict[str, float]:
    """Candidate -> pooled AUPR of the pixels that the masks call 1."""
    rankings: dict[str, PixelRanking] = {}
    for logits, outlier, mask in images:
        for name, score in candidates(logits, outlier).items():
            labelled = mask != data.IGNORE
            rankings.setdefault(name, PixelRanking()).update(score[labelled], mask[labelled] == 1)
    return {name: ranking.compute()["aupr"].value for name, ranking in rankings.items()}


@torch.inference_mode()
def pasted(trained, val, count: int, small: bool) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Outputs for validation images with artificial anomalies, whose mask is 1."""
    step = 1 if small else 2
    for image, mask in anomalous(trained, val, count, small):
        pixels = preprocess(torch.from_numpy(image).permute(2, 0, 1), trained.config.image_size)
        outputs = infer(trained.model, training.to_device(pixels[None]), mask.shape)
        yield *(part[..., ::step, ::step].cpu() for part in outputs), torch.from_numpy(mask)[None, ::step, ::step]


@torch.inference_mode()
def unchanged(trained, val, count: int) -> Images:
    """Outputs for validation images at even distances."""
    some = Subset(val, range(0, len(val), -(-len(val) // count)))
    images = each_image(trained.model, some, trained.config)
    return [tuple(part[..., ::2, ::2].cpu() for part in image) for image in images]


def left_out(images: Images, classes, candidates: Candidates) -> dict[str, dict[str, float]]:
    """Class that is not common -> candidate -> pooled AUPR of its pixels by logits without it."""
    labels = torch.cat([mask[mask != data.IGNORE] for *_, mask in images]).bincount(minlength=len(classes))
    by_class = {}
    for index, entry in enumerate(classes):
        if 0 < labels[index] < COMMON * labels.sum():
            rest = [k for k in range(len(classes)) if k != index]
            without = (
                (logits[:, rest], outlier, torch.where(mask == data.IGNORE, mask, (mask == index).long()))
                for logits, outlier, mask in images
            )
            by_class[entry.name] = auprs(without, candidates)
    return by_class


def measure(trained, root: Path | None, camvid: Path | None, count: int) -> dict:
    """Kind -> candidate -> AUPR (of ``left_out`` by class); ``ratios``: candidate -> kind -> ratio to max logit's."""
    val = road.datasets(trained.config, root, ("val",))["val"]
    normal = unchanged(trained, val, count)
    candidates = Candidates(normal, trained.calibration["tails"])
    by_class = left_out(normal, val.classes, candidates)
    streets = {"": val} | ({"_on_CamVid": data.open_split("camvid", camvid, "val")} if camvid else {})
    kinds = {
        f"{kind}{where}": auprs(pasted(trained, images, count, kind == "small"), candidates)
        for where, images in streets.items()
        for kind in ("pasted", "small")
    }
    ratios = {}
    for name in kinds["pasted"]:
        row = {kind: values[name] / values["max_logit"] for kind, values in kinds.items()}
        row["left_out"] = float(gmean([values[name] / values["max_logit"] for values in by_class.values()]))
        ratios[name] = row | {"all": float(gmean(list(row.values())))}
    return kinds | {"left_out": by_class, "ratios": ratios}


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    trained = system.load(road, options.weights, road.Config.mini())
    described = {"dataset": trained.config.dataset, "split": "val, with artificial anomalies or a class left out"}
    return trained.config.plain(), described, measure(trained, options.root, options.camvid, options.images)


def show(metrics: dict) -> None:
    print(records.table(metrics["ratios"], corner="ratio to max logit"))


def main() -> None:
    """Records: assets/results/road/*_combined.json."""
    options = {
        "weights": {"type": Path, "required": True},
        "root": {"type": Path},
        "camvid": {"type": Path, "help": "CamVid's folder"},
        "images": {"type": int, "default": 48},
    }
    run("tests.benchmark_combined", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

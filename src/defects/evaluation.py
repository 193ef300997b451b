"""Score whole splits, choose thresholds, measure both, and write down what is said of each image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support, roc_auc_score
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from src import plots, settings
from src.defects.data import NORMAL, DefectDataset
from src.defects.model import StudentTeacher
from src.defects.scores import HEADLINE, SCORES, score_maps
from src.metrics import PixelRanking, RegionOverlap, bootstrap, metric_from_counts

QUANTILE = 0.95  # without anomalies to choose by, a threshold lets this share of normal validation images pass
MAX_FPR = 0.3
PROTOCOL = (
    "Image score = maximum of the score map; image AUROC over all images of the split. Pixel metrics: all pixels of "
    "the images that are normal or have a mask, pooled, at the images' own size; AUPRO: mean overlap of 8-connected "
    "regions up to a false positive rate of 0.3. precision, recall and f1: images, at the threshold chosen on val. "
    "Several categories: top level = mean over categories. Interval: 95 %, 1000 bootstrap resamples of images."
)


# ---------------------------------------------------------------------------------------- threshold
def choose_threshold(scores: Sequence[float], is_anomalous: Sequence[bool]) -> dict:
    """``value`` and ``rule``: best F1 where the scores hold anomalies, else a high quantile of normal scores.

    Images with a score of at least the value are called anomalous. Raises ValueError without normal images.
    """
    scores, truth = np.asarray(scores, dtype=float), np.asarray(is_anomalous, dtype=bool)
    if truth.all():
        raise ValueError("a threshold needs the scores of normal images")
    if not truth.any() or scores.min() == scores.max():
        value = np.nextafter(np.quantile(scores[~truth], QUANTILE, method="higher"), np.inf)
        return {"value": float(value), "rule": f"above {QUANTILE:.0%} of the normal validation scores"}
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = 1 + int(np.argmax(f1[1:-1]))  # the lowest would call every image anomalous
    value = (thresholds[best] + thresholds[best - 1]) / 2  # mid-way: no image sits on it
    return {"value": float(value), "rule": "best F1 on the validation images"}


def threshold_on(model: StudentTeacher, category: str, val: DefectDataset, calibration: dict, config) -> dict:
    """The image threshold chosen on a validation split."""
    items = list(scored(model, category, val, calibration, config))
    return choose_threshold([item.score() for item in items], [item.is_anomalous for item in items])


# -------------------------------------------------------------------------------------- measurement
@dataclass
class Scored:
    """One image with its maps (h,w), all at the size the model works at; ``image`` and ``mask`` at their own."""

    name: str
    defect: str
    image: torch.Tensor  # uint8 (3,H,W)
    mask: torch.Tensor | None  # bool (H,W)
    maps: dict[str, torch.Tensor]

    @property
    def is_anomalous(self) -> bool:
        return self.defect != NORMAL

    def score(self, name: str = HEADLINE) -> float:
        return float(self.maps[name].max())

    def picture(self) -> np.ndarray:
        """The image at the size of its maps, uint8 (h,w,3)."""
        return self._resized(self.image).permute(1, 2, 0).numpy()

    def region(self) -> np.ndarray | None:
        """Where its defect is at that size, bool (h,w); None of a normal image, and where there is no mask."""
        known = self.is_anomalous and self.mask is not None
        return self._resized(self.mask[None].float())[0].numpy() >= 0.25 if known else None

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        return TF.resize(image, list(self.maps[HEADLINE].shape), antialias=True)

    def heat(self, threshold: float) -> np.ndarray:
        """The score map as colours, uint8 (h,w,3), from 0, what is usual on normal parts, to 1.5 x the threshold."""
        return plots.heat(self.maps[HEADLINE].numpy(), 0, 1.5 * threshold)


def scored(model: StudentTeacher, category: str, dataset: DefectDataset, calibration: dict, config) -> Iterator[Scored]:
    """Every image of a data set with its score maps, in order."""
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    for index in tqdm(range(len(dataset)), f"scoring {category}", leave=False, disable=None):
        sample = dataset[index]
        maps = score_maps(model, category, sample["image"], calibration, config)
        mask = None if sample["mask"] is None else sample["mask"].as_subclass(torch.Tensor)[0]
        yield Scored(sample["name"], sample["defect"], sample["image"].as_subclass(torch.Tensor), mask, maps)


class Meter:
    """Everything measured of one category, image by image in constant memory; only image scores are kept."""

    def __init__(self):
        self.defects: list[str] = []
        self.images: dict[str, list[float]] = {name: [] for name in SCORES}
        self.pixels = {name: PixelRanking() for name in SCORES}
        self.regions = {name: RegionOverlap() for name in SCORES}
        self.by_defect: dict[str, RegionOverlap] = {}
        self.normal = RegionOverlap()

    @classmethod
    def of(cls, items: Iterable[Scored]) -> Self:
        """A meter that has seen all items."""
        meter = cls()
        for item in items:
            meter.update(item)
        return meter

    def update(self, item: Scored) -> None:
        """Count one image; without a mask, its score alone."""
        self.defects.append(item.defect)
        for name in SCORES:
            self.images[name].append(item.score(name))
            if item.mask is None:
                continue
            at_own_size = TF.resize(item.maps[name][None], list(item.mask.shape), antialias=False)[0]
            self.pixels[name].update(at_own_size, item.mask)
            self.regions[name].update(at_own_size, item.mask)
            if name == HEADLINE:
                kind = self.by_defect.setdefault(item.defect, RegionOverlap()) if item.is_anomalous else self.normal
                kind.update(at_own_size, item.mask)

    def truth(self) -> np.ndarray:
        """Which images are anomalous, bool (N,)."""
        return np.array(self.defects) != NORMAL

    def compute(self, threshold: dict) -> dict:
        """A record's entries; NaN where the split holds no anomalies, or no masks."""
        truth, scores = self.truth(), np.array(self.images[HEADLINE])
        called = scores >= threshold["value"]
        precision, recall, f1, _ = precision_recall_fscore_support(truth, called, average="binary", zero_division=0)
        per_score = {name: self._ranked(name) for name in SCORES}
        return {
            **per_score[HEADLINE],
            "image_auroc_interval": auroc_interval(truth, scores),
            "pixel_base_rate": self.pixels[HEADLINE].base_rate,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "false_positive_rate": float(called[~truth].mean()) if (~truth).any() else float("nan"),
            "threshold": threshold,
            "images": len(truth),
            "normal": int((~truth).sum()),
            "scores": per_score,
            "per_defect": {kind: self._of_defect(kind, called) for kind in sorted(set(self.defects) - {NORMAL})},
        }

    def _ranked(self, name: str) -> dict[str, float]:
        pixels = self.pixels[name].compute()
        return {
            "image_auroc": auroc(self.truth(), np.array(self.images[name])),
            "pixel_auroc": pixels["auroc"].value,
            "pixel_aupr": pixels["aupr"].value,
            "aupro": self.regions[name].compute(MAX_FPR).value,
        }

    def _of_defect(self, kind: str, called: np.ndarray) -> dict:
        chosen = np.array([defect in (kind, NORMAL) for defect in self.defects])
        of_kind = np.array(self.defects) == kind
        total = RegionOverlap()
        for part in (self.normal, *([self.by_defect[kind]] if kind in self.by_defect else [])):
            total.merge(part)
        return {
            "images": int(of_kind.sum()),
            "image_auroc": auroc(self.truth()[chosen], np.array(self.images[HEADLINE])[chosen]),
            "recall": float(called[of_kind].mean()),
            "aupro": total.compute(MAX_FPR).value,
        }


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """scikit-learn's; NaN where one of the classes is missing."""
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else float("nan")


def auroc_interval(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval over images; each is represented by the pairs that it wins."""
    order = np.argsort(scores, kind="stable")
    _, tied = np.unique(scores[order], return_inverse=True)
    counts = np.zeros((len(scores), tied.max() + 1, 2))
    counts[np.arange(len(scores)), tied, truth[order].astype(int)] = 1
    return bootstrap(counts, partial(metric_from_counts, "auroc"))


def mean_over_categories(found: dict[str, dict]) -> dict:
    """The headline of a record: metrics averaged over categories, and ``categories`` themselves if several."""
    first = next(iter(found.values()))
    keys = [key for key, value in first.items() if isinstance(value, float)]
    mean = {key: float(np.mean([metrics[key] for metrics in found.values()])) for key in keys}
    return {"score": HEADLINE, **(first if len(found) == 1 else {"categories": found}), **mean}


# ------------------------------------------------------------------------------------ per-image files
def write_pictures(item: Scored, folder: Path, threshold: float) -> dict:
    """Image, heat map, uncertainty map and mask as PNGs below ``folder``; returns the record of the image.

    All are at the size the model works at.
    """
    pictures = {
        "image": item.picture(),
        "heatmap": item.heat(threshold),
        "uncertainty": plots.heat(item.maps["uncertainty"].numpy(), 0, 0.75 * threshold),
    }
    if (region := item.region()) is not None:
        pictures["mask"] = np.uint8(region) * 255
    paths = {"mask_path": None}
    for kind, picture in pictures.items():
        path = folder / kind / Path(item.name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        paths[f"{kind}_path"] = path.relative_to(folder).as_posix()
    called = item.score() >= threshold
    return {
        "filename": item.name,
        "prediction": {"is_anomalous": called},
        "anomaly_score": item.score(),
        **paths,
    }


def measure(items: Iterator[Scored], category: str, split: str, threshold: dict, folder: Path | None = None) -> dict:
    """Metrics of one category's split; with ``folder``, also ``records.json`` and the pictures of each image."""
    meter, records = Meter(), []
    for item in items:
        meter.update(item)
        if folder:
            record = write_pictures(item, folder, threshold["value"])
            called = record["prediction"]["is_anomalous"]
            truth = {"ground_truth": {"type": "anomaly", "is_anomalous": item.is_anomalous}, "defect": item.defect}
            records.append({**record, "category": category, **truth, "correct": called == item.is_anomalous})
    metrics = meter.compute(threshold)
    if folder:
        content = {
            "dataset": category,
            "split": split,
            "threshold": threshold["value"],
            "threshold_rule": threshold["rule"],
        }
        shown = {key: value for key, value in metrics.items() if isinstance(value, float)}
        records.write({**content, "metrics": shown, "images": records}, folder / "records.json")
    return metrics

"""Score the images of a split, choose thresholds, and measure both."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from src import plots, settings
from src.defects.data import SPLITS, DefectDataset, datasets, default_root, require_upright_masks
from src.defects.layouts import NESTED, NORMAL, pooled
from src.defects.scores import HEADLINE, score_maps
from src.metrics import PixelRanking, RegionOverlap, bootstrap, mean_interval, metric_from_counts
from src.system import Trained

BATCH = 4  # images at a time, at most: descriptors of every pixel take memory
QUANTILE = 0.95  # without anomalies to choose by, a threshold lets this share of normal validation images pass
FEWEST = 2  # anomalous images that a threshold can be chosen by, or a ranking measured on
MAX_FPR = 0.3
UNDEFINED = float("nan")  # null in a record
PROTOCOL = (
    "Image score = maximum of the score map; image AUROC over all images of the split. Pixel metrics: all pixels of "
    "the images that are normal or have a mask, pooled, at the images' own size; AUPRO: mean overlap of 8-connected "
    "regions up to a false positive rate of 0.3. precision, recall and f1: images, at the threshold chosen on val. "
    "Several categories: top level = mean over categories. Interval: 95 %, 1000 bootstrap resamples of images."
)


# -------------------------------------------------------------------------------- scores of images
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
        if not self.is_anomalous or self.mask is None:
            return None
        return self._resized(self.mask[None].float())[0].numpy() >= 0.25

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        return TF.resize(image, list(self.maps[HEADLINE].shape), antialias=True)

    def heat(self, threshold: float) -> np.ndarray:
        """The picture in dark grey and over it, in colours, what scores above the threshold; uint8 (h,w,3).

        Colours run from the threshold to twice its value (at least 1 above it), whatever the image: good parts stay
        dark, and one colour means one score.
        """
        score, unit = self.maps[HEADLINE].numpy(), max(abs(threshold), 1)
        return plots.above_threshold(self.picture(), score, threshold, threshold + unit)


def scored(trained: Trained, category: str, dataset: DefectDataset) -> Iterator[Scored]:
    """Every image of a data set with its score maps, in order; neighbours of one size are computed together."""
    model = trained.model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    bar = tqdm(range(len(dataset)), f"scoring {category}", leave=False, disable=len(dataset) < 2 or None)
    for _, of_size in groupby((dataset[index] for index in bar), lambda sample: sample["image"].shape):
        while batch := list(islice(of_size, BATCH)):
            images = torch.stack([sample["image"].as_subclass(torch.Tensor) for sample in batch])
            maps = score_maps(model, category, images, trained.calibration[category], trained.config)
            for sample, image, of_image in zip(batch, images, maps, strict=True):
                mask = None if sample["mask"] is None else sample["mask"].as_subclass(torch.Tensor)[0]
                yield Scored(sample["name"], sample["defect"], image, mask, of_image)


def categories_of(trained: Trained) -> tuple[str, ...]:
    """The categories to score; InputError for some, or for patch sizes, that the model was not trained on."""
    asked, known = trained.config, tuple(trained.calibration)
    choices = {
        "categories": (asked.categories, known),
        "patch sizes": (asked.patch_sizes, trained.trained_config.patch_sizes),
    }
    for name, (chosen, allowed) in choices.items():
        if unknown := set(chosen) - set(allowed):
            raise settings.InputError(
                f"{trained.source} knows the {name} {', '.join(map(str, allowed))}, not {', '.join(map(str, unknown))}"
            )
    return asked.categories or known


def samples(trained: Trained, root: Path | None, dataset: str | None, split: str) -> dict[str, DefectDataset]:
    """Category of the model -> the images to score: a split of its own data set, or of another one.

    Of another one whose layout has no splits, every image is scored: none was trained on.
    """
    if split not in SPLITS:
        raise settings.InputError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    config, categories = trained.config, categories_of(trained)
    dataset = dataset or config.dataset
    root = root or default_root(dataset)
    if dataset != config.dataset and dataset not in NESTED:
        parts = [DefectDataset(pooled(dataset, root), root)]
    else:
        folders = tuple(name for name in categories if name != config.dataset)
        config = replace(config, dataset=dataset, categories=folders)
        parts = [splits[split] for splits in datasets(config, root).values()]
    if len(parts) != len(categories):
        raise settings.InputError(
            f"{dataset} is one set of images, the weights know the categories {', '.join(categories)}: "
            "choose one with categories=NAME"
        )
    images = dict(zip(categories, parts, strict=True))
    for category, part in images.items():
        if not part.items:
            raise settings.InputError(f"{root}: {split} holds no images of {category}; choose another split")
    return images


# ---------------------------------------------------------------------------------------- threshold
def choose_threshold(scores: Sequence[float], is_anomalous: Sequence[bool]) -> dict[str, Any]:
    """``value`` and ``rule``: best F1 where two scores or more are of anomalies, else a high quantile of normal ones.

    ``few_alarms`` is that quantile in any case. Images with a score of at least the value are called anomalous. Raises
    ValueError without normal images.
    """
    from sklearn.metrics import precision_recall_curve

    scores, truth = np.asarray(scores, dtype=float), np.asarray(is_anomalous, dtype=bool)
    if truth.all():
        raise ValueError("a threshold needs the scores of normal images")
    few = float(np.nextafter(np.quantile(scores[~truth], QUANTILE, method="higher"), np.inf))
    if truth.sum() < FEWEST or scores.min() == scores.max():
        return {"value": few, "rule": f"above {QUANTILE:.0%} of the normal validation scores", "few_alarms": few}
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = 1 + int(np.argmax(f1[1:-1]))  # the lowest would call every image anomalous
    value = (thresholds[best] + thresholds[best - 1]) / 2  # mid-way: no image sits on it
    return {"value": float(value), "rule": "best F1 on the validation images", "few_alarms": few}


def threshold_on(trained: Trained, category: str, val: DefectDataset) -> dict[str, Any]:
    """The image threshold chosen on a validation split."""
    items = list(scored(trained, category, val))
    return choose_threshold([item.score() for item in items], [item.is_anomalous for item in items])


# -------------------------------------------------------------------------------------- measurement
class Meter:
    """Everything measured of one category, image by image in constant memory; only image scores are kept."""

    def __init__(self):
        self.defects: list[str] = []
        self.images: dict[str, list[float]] = defaultdict(list)
        self.pixels: dict[str, PixelRanking] = defaultdict(PixelRanking)
        self.regions: dict[str, RegionOverlap] = defaultdict(RegionOverlap)
        self.by_defect: dict[str, RegionOverlap] = {}
        self.normal = RegionOverlap()

    @classmethod
    def of(cls, items: Iterable[Scored]) -> Self:
        """A meter that has counted all items."""
        meter = cls()
        for item in items:
            meter.update(item)
        return meter

    def update(self, item: Scored) -> None:
        """Count one image; without a mask, its score alone."""
        self.defects.append(item.defect)
        for name in item.maps:
            self.images[name].append(item.score(name))
            if item.mask is None:
                continue
            full_size = TF.resize(item.maps[name][None], list(item.mask.shape), antialias=False)[0]
            self.pixels[name].update(full_size, item.mask)
            self.regions[name].update(full_size, item.mask)
            if name == HEADLINE:
                kind = self.by_defect.setdefault(item.defect, RegionOverlap()) if item.is_anomalous else self.normal
                kind.update(full_size, item.mask)

    def truth(self) -> np.ndarray:
        """Which images are anomalous, bool (N,)."""
        return np.array(self.defects) != NORMAL

    def compute(self, threshold: dict[str, Any]) -> dict[str, Any]:
        """A record's entries; NaN where the split lacks the images, or the masks, that a number is about."""
        from sklearn.metrics import precision_recall_fscore_support

        truth, scores = self.truth(), np.array(self.images[HEADLINE])
        called = scores >= threshold["value"]
        precision, recall, f1, _ = precision_recall_fscore_support(truth, called, average="binary", zero_division=0)
        of_scores, measurable = {name: self._ranked(name) for name in self.images}, is_measurable(truth)
        return {
            **of_scores[HEADLINE],
            "image_auroc_interval": auroc_interval(truth, scores) if measurable else (UNDEFINED, UNDEFINED),
            "pixel_base_rate": self.pixels[HEADLINE].base_rate,
            "precision": float(precision) if measurable else UNDEFINED,
            "recall": float(recall) if truth.sum() >= FEWEST else UNDEFINED,
            "f1": float(f1) if measurable else UNDEFINED,
            "false_positive_rate": UNDEFINED if truth.all() else float(called[~truth].mean()),
            "threshold": threshold,
            **({"few_alarms": few_alarms(truth, scores, threshold["few_alarms"])} if "few_alarms" in threshold else {}),
            "images": len(truth),
            "normal": int((~truth).sum()),
            "scores": of_scores,
            "per_defect": {kind: self._of_defect(kind, called) for kind in sorted(set(self.defects) - {NORMAL})},
        }

    def _ranked(self, name: str) -> dict[str, float]:
        pixels, truth = self.pixels[name].compute(), self.truth()
        return {
            "image_auroc": auroc(truth, np.array(self.images[name])) if is_measurable(truth) else UNDEFINED,
            "pixel_auroc": pixels["auroc"].value,
            "pixel_aupr": pixels["aupr"].value,
            "aupro": self.regions[name].compute(MAX_FPR).value,
        }

    def _of_defect(self, kind: str, called: np.ndarray) -> dict[str, float]:
        defects, scores = np.array(self.defects), np.array(self.images[HEADLINE])
        is_kind = defects == kind
        chosen = is_kind | ~self.truth()
        of_kind = [self.by_defect[kind]] if kind in self.by_defect else []
        regions = RegionOverlap.merged((self.normal, *of_kind))
        return {
            "images": int(is_kind.sum()),
            "image_auroc": auroc(is_kind[chosen], scores[chosen]),
            "recall": float(called[is_kind].mean()),
            "aupro": regions.compute(MAX_FPR).value,
        }

    def caveats(self) -> list[str]:
        """What the images of this category lack for some numbers to be defined, or to mean much; a sentence each."""
        anomalous, sentences = int(self.truth().sum()), []
        if not anomalous:
            sentences.append("no image is anomalous, so AUROC, AUPR, AUPRO, precision, recall and F1 are undefined")
        elif anomalous == len(self.defects):
            sentences.append("no image is normal, so image AUROC, precision, F1 and false positives are undefined")
        elif anomalous == 1:
            scores = np.array(self.images[HEADLINE])
            above = int((scores[~self.truth()] >= scores[self.truth()]).sum())
            sentences.append(
                "one image alone is anomalous, too few to measure image AUROC, precision, recall and F1: "
                f"{above} of {len(scores) - 1} normal images score as high as it does"
            )
        if anomalous and not self.by_defect:
            sentences.append("no anomalous image has a mask, so the pixel metrics are undefined")
        return sentences


def is_measurable(truth: np.ndarray) -> bool:
    """Whether there are normal images and enough anomalous ones to rank them by."""
    return bool(truth.sum() >= FEWEST and not truth.all())


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """scikit-learn's; NaN where one of the classes is missing."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else UNDEFINED


def few_alarms(truth: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, Any]:
    """``recall`` with its interval, and ``false_positive_rate``, at the threshold that few normal val images reach."""
    called, has_enough = scores >= threshold, truth.sum() >= FEWEST
    return {
        "threshold": threshold,
        "recall": float(called[truth].mean()) if has_enough else UNDEFINED,
        "recall_interval": mean_interval(called[truth]) if has_enough else (UNDEFINED, UNDEFINED),
        "false_positive_rate": UNDEFINED if truth.all() else float(called[~truth].mean()),
    }


def auroc_interval(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval over images; each is represented by the pairs that it wins."""
    order = np.argsort(scores, kind="stable")
    _, tied = np.unique(scores[order], return_inverse=True)
    counts = np.zeros((len(scores), tied.max() + 1, 2))
    counts[np.arange(len(scores)), tied, truth[order].astype(int)] = 1
    return bootstrap(counts, partial(metric_from_counts, "auroc"))


def mean_over_categories(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The headline of a record: metrics averaged over categories, and ``categories`` themselves if several."""
    first = next(iter(metrics.values()))
    keys = [key for key, value in first.items() if isinstance(value, float)]
    means = {key: float(np.mean([of_category[key] for of_category in metrics.values()])) for key in keys}
    return {"score": HEADLINE, **(first if len(metrics) == 1 else {"categories": metrics}), **means}


# --------------------------------------------------------------------------------- public functions
def evaluate(
    trained: Trained, root: Path | None = None, *, dataset: str | None = None, split: str = "test"
) -> dict[str, Any]:
    """Metrics of a model on a split of its own data set, or of another one (``dataset``) in any layout.

    Prints which numbers are undefined, NaN, for lack of images or masks. DataError for inverted masks.
    """
    metrics = {}
    for category, images in samples(trained, root, dataset, split).items():
        require_upright_masks(images)
        meter = Meter.of(scored(trained, category, images))
        metrics[category] = summary(trained, category, meter)
    return mean_over_categories(metrics)


def summary(trained: Trained, category: str, meter: Meter) -> dict[str, Any]:
    """``meter.compute`` at the category's threshold; prints its caveats."""
    for sentence in meter.caveats():
        print(f"{category}: {sentence}")
    return meter.compute(trained.extras["thresholds"][category])


def evaluated(
    trained: Trained, root: Path | None, dataset: str | None, split: str
) -> tuple[list[Path], dict[str, Any]]:
    """The files behind an evaluation, and what its record says of it."""
    images = samples(trained, root, dataset, split).values()
    return [file for part in images for file in part.files()], {"stride": trained.config.stride}

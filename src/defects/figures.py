"""What the defects system draws: descriptors, heat maps, curves, failures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve
from torchvision.transforms.v2 import functional as TF

from src import plots, settings
from src.defects.config import Config
from src.defects.data import DefectDataset
from src.defects.dense import dense
from src.defects.evaluation import MAX_FPR, Meter, Scored, samples, scored
from src.defects.layouts import NORMAL
from src.defects.model import StudentTeacher
from src.defects.scores import HEADLINE, pixels_of
from src.system import Trained

CURVES = {  # measured in training -> title
    "distillation": "teacher: distillation error",
    "effective_rank": "teacher: effective rank",
    "regression_error": "students: regression error",
}
SCALE = {"threshold": 1.0, "2 x threshold": 2.0}  # of ``Scored.heat``, in thresholds


def data_flow() -> Figure:
    """The system as a diagram: what is trained, and how each method turns an image into a score map."""
    places = {
        "image": (0, 1),
        "frozen backbone": (1.4, 0.5),
        "teacher": (1.4, 1.5),
        "students": (2.8, 1.5),
        "nearest good vectors": (3.0, 0),
        "feature student": (3.0, 0.75),
        "calibrated score": (4.6, 0.75),
        "threshold": (5.9, 0.75),
    }
    arrows = [
        ("image", "frozen backbone"),
        ("image", "teacher"),
        ("teacher", "students"),
        ("frozen backbone", "nearest good vectors"),
        ("frozen backbone", "feature student"),
        ("students", "calibrated score"),
        ("nearest good vectors", "calibrated score"),
        ("feature student", "calibrated score"),
        ("calibrated score", "threshold"),
    ]
    return plots.flow_diagram(places, arrows, trained=("teacher", "students", "feature student"))


def outlined(item: Scored) -> np.ndarray:
    """The image at the size of its maps, its defect outlined; uint8 (h,w,3)."""
    region = item.region()
    return item.picture() if region is None else plots.outline(item.picture(), region)


def samples_grid(datasets: dict[str, DefectDataset], kinds: Sequence[str]) -> Figure:
    """One image of each kind (a column), for each category (a row), defects outlined where there are masks.

    A category without a kind shows another of its own, if it has more, under a title of its own.
    """
    rows, titles, blank = [], [], np.full((1, 1, 3), 255, dtype=np.uint8)
    for dataset in datasets.values():
        first = {item.defect: index for index, item in reversed(list(enumerate(dataset.items)))}
        others = iter(sorted(first.keys() - set(kinds)))
        row_kinds = [kind if kind in first else next(others, "") for kind in kinds]
        rows.append([_outlined_sample(dataset[first[kind]]) if kind else blank for kind in row_kinds])
        titles += row_kinds
    figure = plots.image_grid(rows, kinds, list(datasets))
    for axis, title, kind in zip(figure.axes, titles, [*kinds] * len(rows), strict=True):
        if title != kind:
            axis.set_title(title)
    return figure


def _outlined_sample(sample: dict) -> np.ndarray:
    image = sample["image"].permute(1, 2, 0).numpy()
    return image if sample["mask"] is None else plots.outline(image, sample["mask"][0].numpy())


def descriptor_colors(
    model: StudentTeacher, category: str, image: torch.Tensor, config: Config
) -> dict[str, np.ndarray]:
    """Descriptors of teacher and students at each pixel of an image uint8 (3,H,W), as colours uint8 (h,w,3).

    The colours are the first three principal components of the teacher's normalised descriptors: where teacher
    and students differ in colour, the students' predictions are off.
    """
    size = next(iter(model.teachers))
    students, pixels = model.students[category][size], pixels_of(image[None], config)
    teacher = students.normalize(dense(model.teachers[size], pixels))
    mean = torch.stack([dense(net, pixels) for net in students.nets]).mean(0)
    descriptors = {"teacher": teacher, "students' mean": mean}
    flat = {name: maps[0].flatten(1).T.cpu().numpy() for name, maps in descriptors.items()}
    pca = PCA(3, random_state=0).fit(flat["teacher"])
    low, high = np.percentile(pca.transform(flat["teacher"]), (1, 99), axis=0)
    colors = {}
    for name, values in flat.items():
        scaled = np.clip((pca.transform(values) - low) / (high - low), 0, 1)
        colors[name] = np.uint8(255 * scaled.reshape(*teacher.shape[-2:], 3))
    return colors


def descriptors_grid(trained: Trained, images: dict[str, DefectDataset], kind: str) -> Figure:
    """Image, descriptors of teacher and students as colours, and score: of each category's last defect of a kind.

    A category without that kind shows its last image.
    """
    rows = []
    for category, dataset in images.items():
        chosen = [item for item in dataset.items if item.defect == kind] or dataset.items
        (item,) = scored(trained, category, DefectDataset(chosen[-1:], dataset.root))
        colors = descriptor_colors(trained.model, category, item.image, trained.config)
        threshold = trained.extras["thresholds"][category]["value"]
        rows.append([outlined(item), *colors.values(), item.heat(threshold)])
    figure = plots.image_grid(rows, ("image", "teacher", "students' mean", "score"), list(images))
    plots.add_scale(figure, SCALE)
    return figure


def heatmap_grid(items: Sequence[Scored], thresholds: Sequence[float]) -> Figure:
    """Image with its defect outlined, the method's signals as z-scores from 0 to 10, and what exceeds the threshold."""
    rows, names, signals = [], [], [name for name in items[0].maps if name not in ("sum", HEADLINE)]
    for item, threshold in zip(items, thresholds, strict=True):
        heat = [plots.heat(item.maps[name].numpy(), 0, 10) for name in signals]
        rows.append([_square(picture) for picture in (outlined(item), *heat, item.heat(threshold))])
        names.append(f"{item.defect}\n{item.score():.1f} / {threshold:.1f}")
    figure = plots.image_grid(rows, ("image", *signals, HEADLINE), names)
    plots.add_scale(figure, SCALE)
    return figure


def _square(image: np.ndarray, side: int = 192) -> np.ndarray:
    """Images of different shapes in one grid: scaled to fit a white square."""
    scale = side / max(image.shape[:2])
    small = TF.resize(torch.from_numpy(image.copy()).permute(2, 0, 1), [round(s * scale) for s in image.shape[:2]])
    height, width = small.shape[1:]
    top, left = (side - height) // 2, (side - width) // 2
    return TF.pad(small, [left, top, side - width - left, side - height - top], fill=255).permute(1, 2, 0).numpy()


def score_histogram(meters: dict[str, Meter], thresholds: dict[str, float]) -> Figure:
    """Image scores of normal and anomalous images and the threshold, a panel for each category."""
    figure, axes = plt.subplots(1, len(meters), figsize=(plots.WIDTH, 2.6), squeeze=False)
    for axis, (category, meter) in zip(axes[0], meters.items(), strict=True):
        scores, truth = np.array(meter.images[HEADLINE]), meter.truth()
        bins = np.linspace(scores.min(), np.quantile(scores, 0.98), 30)
        clipped = np.clip(scores, bins[0], bins[-1])
        axis.hist([clipped[~truth], clipped[truth]], bins, stacked=True, label=("normal", "anomalous"))
        axis.axvline(thresholds[category], color="black", linestyle=":", label="threshold")
        axis.set(title=category.replace("_", " "), xlabel="image score", ylabel="images" if axis is axes[0, 0] else "")
    axes[0, 0].legend()
    return figure


def roc(meters: dict[str, Meter]) -> Figure:
    """Image ROC of each score, and per-region overlap against the pixels' false positive rate, of each category."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(plots.WIDTH, 3.4))
    for category, meter in meters.items():
        label = category.replace("_", " ")
        fpr, tpr, _ = roc_curve(meter.truth(), meter.images[HEADLINE])
        left.plot(fpr, tpr, label=label)
        if meter.regions[HEADLINE].regions:  # there are masks
            curve = meter.regions[HEADLINE].curve()
            right.plot(curve["fpr"], curve["pro"], label=label)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":")
    right.axvline(MAX_FPR, color="grey", linewidth=0.8)
    left.set(title="images", xlabel="false positive rate", ylabel="true positive rate")
    right.set(title="regions (AUPRO: left of the line)", xlabel="false positive rate of pixels", ylabel="mean overlap")
    for axis in (left, right):
        axis.set(xlim=(0, 1), ylim=(0, 1.01))
    left.legend()
    return figure


def curves(history: dict[str, list[dict]]) -> Figure:
    """What training measured over the epochs: of the teacher, where one was distilled, and of the students."""
    panels = [metric for metric in CURVES if any(metric in rows[0] for rows in history.values())]
    figure, axes = plt.subplots(1, len(panels), figsize=(plots.WIDTH, 2.6), squeeze=False)
    for axis, metric in zip(axes[0], panels, strict=True):
        for name, rows in history.items():
            if metric in rows[0]:
                epochs = [row["epoch"] for row in rows]
                axis.plot(epochs, [row[metric] for row in rows], label=name.replace("_", " "))
        axis.set(title=CURVES[metric], xlabel="epoch")
    axes[0, -1].legend()
    return figure


def failures(items: Sequence[Scored], threshold: float, count: int = 4) -> Figure:
    """The normal images with the highest score and the defects with the lowest, each above its heat map."""
    normal = sorted((item for item in items if not item.is_anomalous), key=Scored.score)[-count:][::-1]
    missed = sorted((item for item in items if item.is_anomalous), key=Scored.score)[:count]
    worst = [*normal, *missed]
    rows = [[_square(outlined(item)) for item in worst], [_square(item.heat(threshold)) for item in worst]]
    titles = [f"{item.defect.replace(NORMAL, 'normal')}\n{item.score():.1f}" for item in worst]
    figure = plots.image_grid(rows, titles, ("image", "score"))
    plots.add_scale(figure, SCALE)
    return figure


def typical(items: Sequence[Scored], count: int) -> list[Scored]:
    """``count`` images of typical score, of every kind in turn, the nearest to the median of their kind first."""
    kinds: dict[str, list[Scored]] = {}
    for item in items:
        kinds.setdefault(item.defect, []).append(item)
    for members in kinds.values():
        middle = float(np.median([item.score() for item in members]))
        members.sort(key=lambda item: abs(item.score() - middle))
    turns = range(max(map(len, kinds.values())))
    return [members[turn] for turn in turns for members in kinds.values() if turn < len(members)][:count]


def draw(trained: Trained, root: Path | None, dataset: str | None) -> dict[str, Figure]:
    """Failures, heat maps, ROC and histograms of a model on a test split; the curves of its training on its own data.

    Raises InputError where a category's images are all normal or all anomalous.
    """
    dataset = dataset or trained.config.dataset
    images = samples(trained, root, dataset, "test")
    for category, part in images.items():
        if len(kinds := {item.is_anomalous for item in part.items}) < 2:
            only = "anomalous" if True in kinds else "normal"
            raise settings.InputError(f"{dataset} has only {only} images of {category}: add others, a ROC needs both")
    thresholds = {category: trained.extras["thresholds"][category]["value"] for category in images}
    items = {category: list(scored(trained, category, part)) for category, part in images.items()}
    meters = {category: Meter.of(of_category) for category, of_category in items.items()}
    figures = {f"failures_{name}": failures(of_category, thresholds[name]) for name, of_category in items.items()}
    examples = [(item, thresholds[c]) for c in items for item in typical(items[c], max(3, 7 - 2 * len(items)))]
    figures["heatmaps"] = heatmap_grid(*zip(*examples, strict=True))
    figures["roc"] = roc(meters)
    figures["scores"] = score_histogram(meters, thresholds)
    if dataset == trained.config.dataset and trained.history:
        figures["curves"] = curves(trained.history)
    return figures

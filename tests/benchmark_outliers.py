"""Compares scores on validation images with artificial anomalies: how the road system's score was chosen.

    python -m tests.benchmark_outliers --weights FILE [--root DIR] [--images 96] [--json OUT]

Anomalies: for ``mini``, new scenes of the validation town rendered with objects (another seed); else drawings of
those objects pasted into the model's validation images. Neither is what the outlier head was trained on.
Candidates, on one frozen model: scores of its logits; Mahalanobis distance to class means and cosine distance to the
third nearest of 10,000 training cells, for features of several depths; distance to class prototypes learned on the
decoder's features with focal loss and an entropy regulariser; the committed outlier head. Pooled AUPR. Not collected
by pytest.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from src import road, settings, system, training
from src.metrics import PixelRanking
from src.road import data
from src.road.model import layer_outputs, stages
from src.road.scores import SCORES
from src.road.transforms import preprocess
from src.synthetic.street_anomalies import ANOMALY, draw_object
from src.synthetic.street_scenes import render_scene
from tests.benchmarking import run

CELLS, BANK, NEIGHBOUR = 300, 10_000, 3  # cells of a training image, cells kept, which neighbour counts
PROTOCOL = "pooled AUPR over labelled pixels, features' scores enlarged bilinearly; chance is base_rate"


def paste_drawing(image: np.ndarray, rng, ground: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One to three drawn objects into an image uint8 (H,W,3): a new one, and where they are, bool (H,W).

    With ``ground``, bool (H,W), they are small and stand on it.
    """
    smallest, largest = (0.06, 0.5) if ground is None else (0.02, 0.08)
    pixels, where = torch.from_numpy(image).permute(2, 0, 1).float() / 255, np.zeros(image.shape[:2], bool)
    for _ in range(rng.integers(1, 4)):
        colour, solid = draw_object(rng)
        height = int(len(image) * np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        size = (height, max(2, min(round(height * solid.shape[1] / solid.shape[0]), image.shape[1])))
        layers = np.concatenate([colour * rng.uniform(0.5, 1), solid[..., None]], 2, dtype=np.float32)
        *drawn, alpha = F.interpolate(torch.from_numpy(layers).permute(2, 0, 1)[None], size, mode="area")[0]
        if ground is None:
            bottom, left = int(len(image) * rng.uniform(0.25, 1)), int(rng.integers(image.shape[1] - size[1] + 1))
        else:
            bottom, middle = rng.choice(np.argwhere(ground))
            left = int(np.clip(middle - size[1] // 2, 0, image.shape[1] - size[1]))
        top = max(0, int(bottom) - height)
        place = (slice(top, top + size[0]), slice(left, left + size[1]))
        pixels[:, *place] = alpha * torch.stack(drawn) + (1 - alpha) * pixels[:, *place]
        where[place] |= alpha.numpy() > 0.5
    return (pixels * 255).round().byte().permute(1, 2, 0).numpy(), where


def anomalous(trained, val, count: int, small: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 (H,W,3) with masks int64 (H,W): 1 anomalous, 0 not, IGNORE; ``small``: objects on the road."""
    if trained.config.dataset == "mini" and not small:
        scenes = [render_scene("val", index, seed=7, anomalous=True)[:2] for index in range(count)]
        return [(image, (mask == ANOMALY).astype(np.int64)) for image, mask in scenes]
    images, road_label = [], [entry.name for entry in val.classes].index("road")
    for index in range(0, len(val), -(-len(val) // count)):
        sample = val[index]
        ground = sample["mask"][0].numpy() == road_label if small else None
        if small and not ground.any():
            continue
        image, where = paste_drawing(sample["image"].permute(1, 2, 0).numpy(), np.random.default_rng(index), ground)
        ignored = np.where(sample["mask"][0].numpy() == data.IGNORE, data.IGNORE, 0)
        images.append((image, np.where(where, 1, ignored)))
    return images


@torch.inference_mode()
def features(trained, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """``logits``, ``decoder`` and the feature layers of the backbone, each (C,h,w), of an image uint8 (3,H,W)."""
    model = trained.model
    pixels = training.to_device(preprocess(image, trained.config.image_size)[None])
    layers = layer_outputs(model.backbone, stages(trained.config.backbone), pixels)
    deepest = [*layers.values()][-1]
    decoder = nn.Sequential(*list(model.classifier)[:-1])(deepest)
    size = deepest.shape[-2:]
    pooled = {f"tap {name}": F.adaptive_avg_pool2d(value, size)[0] for name, value in layers.items()}
    head = {"outlier head": model.outlier_head(layers)} if hasattr(model, "outlier_head") else {}
    return {"logits": model.classifier[-1](decoder)[0], "decoder": decoder[0], **pooled, **head}


def training_cells(trained, train) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Features (N,C) of labelled cells of training images by name, and their classes (N,)."""
    cells, labels, generator = {}, [], torch.Generator().manual_seed(0)
    for index in tqdm(range(0, len(train), max(1, len(train) // 150)), disable=None):
        sample = train[index]
        one = features(trained, sample["image"])
        size = one["decoder"].shape[1:]
        mask = F.interpolate(sample["mask"][None].float(), size, mode="nearest-exact").flatten().long()
        labelled = (mask != data.IGNORE).nonzero()[:, 0]
        labelled = labelled[torch.randperm(len(labelled), generator=generator)[:CELLS]]
        labels.append(mask[labelled])
        for name in one:
            if name.startswith(("decoder", "tap")):
                cells.setdefault(name, []).append(one[name].flatten(1).T.cpu()[labelled])
    return {name: torch.cat(parts) for name, parts in cells.items()}, torch.cat(labels)


def mahalanobis(cells: torch.Tensor, labels: torch.Tensor, classes: int):
    """Distance (N,) to the nearest class mean in the metric of the shared covariance."""
    means = torch.stack([cells[labels == c].mean(0) if (labels == c).any() else cells.mean(0) for c in range(classes)])
    left = cells - means[labels]
    covariance = left.T @ left / len(left)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return lambda x: torch.cdist(x @ whiten, means @ whiten).amin(1)


def nearest(cells: torch.Tensor):
    """Cosine distance (N,) to a near neighbour among the training cells."""
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    bank = F.normalize(cells[order[:BANK]], dim=1)
    return lambda x: 1 - (F.normalize(x, dim=1) @ bank.T).topk(NEIGHBOUR).values[:, -1]


def prototypes(cells: torch.Tensor, labels: torch.Tensor, classes: int):
    """Cosine distance (N,) to the nearest learned class prototype."""
    torch.manual_seed(0)
    embed, centres = nn.Linear(cells.shape[1], 64), nn.Parameter(torch.randn(classes, 64))
    optimizer = torch.optim.AdamW([*embed.parameters(), centres], lr=3e-3)

    def cosine(x):
        return F.normalize(embed(x), dim=1) @ F.normalize(centres, dim=1).T

    for step in range(1500):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 1500)
        rows = torch.randint(len(cells), (1024,))
        logs = (10 * cosine(cells[rows])).log_softmax(1)
        right = logs.gather(1, labels[rows, None])[:, 0]
        focal = -((1 - right.exp()).square() * right).mean()
        entropy = -(logs.exp() * logs).sum(1).mean()
        optimizer.zero_grad()
        (focal + 0.1 * entropy).backward()
        optimizer.step()
    return torch.no_grad()(lambda x: -cosine(x).amax(1))


def measure(trained, root: Path | None, count: int) -> dict:
    """``candidates``: name -> pooled AUPR; ``base_rate``; ``images``."""
    trained.model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    sets = road.datasets(trained.config, root, ("train", "val"))
    classes = len(sets["train"].classes)
    cells, labels = training_cells(trained, sets["train"])
    of_features = {f"nearest neighbour, {name}": (name, nearest(x)) for name, x in cells.items()}
    of_features |= {f"Mahalanobis, {name}": (name, mahalanobis(x, labels, classes)) for name, x in cells.items()}
    of_features["prototypes, decoder"] = ("decoder", prototypes(cells["decoder"], labels, classes))
    rankings: dict[str, PixelRanking] = {}
    images = anomalous(trained, sets["val"], count)
    for image, mask in tqdm(images, disable=None):
        one = {name: x.cpu() for name, x in features(trained, torch.from_numpy(image).permute(2, 0, 1)).items()}
        size = one["decoder"].shape[1:]
        maps = {name: score(one["logits"][None])[0] for name, score in SCORES.items()}
        maps |= {name: score(one[key].flatten(1).T).reshape(size) for name, (key, score) in of_features.items()}
        maps |= {name: one[name][0] for name in one if name == "outlier head"}
        known = torch.from_numpy(mask != data.IGNORE)
        for name, score in maps.items():
            full = F.interpolate(score[None, None].float(), mask.shape, mode="bilinear")[0, 0]
            rankings.setdefault(name, PixelRanking()).update(full[known], torch.from_numpy(mask == 1)[known])
    candidates = {name: ranking.compute()["aupr"].value for name, ranking in rankings.items()}
    return {"candidates": candidates, "base_rate": rankings["max_logit"].base_rate, "images": len(images)}


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    trained = system.load(road, options.weights, road.Config.mini())
    data = {"dataset": trained.config.dataset, "split": "val, with artificial anomalies"}
    return trained.config.plain(), data, measure(trained, options.root, options.images)


def show(metrics: dict) -> None:
    for name, value in sorted(metrics["candidates"].items(), key=lambda entry: -entry[1]):
        print(f"{name:32s} {value:.4f}")
    print(f"base rate {metrics['base_rate']:.4f}, {metrics['images']} images")


def main() -> None:
    """Records: assets/results/road/*_selection.json."""
    options = {
        "weights": {"type": Path, "required": True},
        "root": {"type": Path},
        "images": {"type": int, "default": 96},
    }
    run("tests.benchmark_outliers", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""Rehearses the full road recipe on scenes of StreetHazards' size and layout, and times it. Not collected by pytest.

    python -m tests.benchmark_streethazards [--images 8] [--compile 1] [--json OUT]

Generated scenes of 1280 x 720 pixels lie where StreetHazards' would. Profile ``full`` (DeepLabV3-ResNet50, here from
random weights) trains on them for an epoch, and its outlier head for another; then it is calibrated and evaluated.
``images_s`` of a training step stands beside ``plain_images_s``, that of the shortest loop around torchvision's own
network in float32: same batches, second of two epochs.
"""

import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.models.segmentation import deeplabv3_resnet50

from src import road, settings, training
from src.road import fitting
from src.road.data import IGNORE
from src.synthetic import street_scenes
from tests.benchmarking import run

SIZE = (720, 1280)
PROTOCOL = (
    "generated 1280 x 720 scenes, profile full, random weights; images_s: second of two epochs of training steps; "
    "plain_images_s: the same of torchvision's network in a plain float32 loop; peak_gib: resident memory at most"
)


def our_seconds(config: road.Config, splits: dict, folder: Path) -> float:
    """Wall seconds of an epoch of ``training.fit`` without validation."""
    history = training.fit(
        road.build_model(config),
        fitting.get_dataloaders(config, splits)["train"],
        lambda model, batch: fitting.segmentation_loss(model, batch, None, config.aux_weight),
        lambda model: {},
        replace(config, epochs=2, schedule="constant"),  # plateau would need validation
        run_dir=folder,
        monitor=None,
    )
    return history[1]["seconds"] - history[0]["seconds"]


def plain_seconds(config: road.Config, splits: dict) -> float:
    """Wall seconds of an epoch of a plain loop on the same batches."""
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=13, aux_loss=True)
    model = model.to(settings.DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    batches = fitting.get_dataloaders(config, splits)["train"]
    for _ in range(2):
        start = time.monotonic()
        for batch in batches:
            images, masks = batch["image"].to(settings.DEVICE), batch["mask"].to(settings.DEVICE)
            outputs = model(images)
            loss = F.cross_entropy(outputs["out"], masks, ignore_index=IGNORE)
            loss = loss + config.aux_weight * F.cross_entropy(outputs["aux"], masks, ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        seconds = time.monotonic() - start
    return seconds


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    config = replace(road.Config.full(), pretrained="none", epochs=1, outlier_epochs=1, compile=bool(options.compile))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = {"train": options.images, "val": config.batch_size, "test": config.batch_size}
        street_scenes.write_dataset(folder / "data", counts, SIZE)
        splits = road.datasets(config, folder / "data")
        segmenter = replace(config, outlier_epochs=0)
        metrics = {
            "images_s": options.images / our_seconds(segmenter, splits, folder / "timing"),
            "plain_images_s": options.images / plain_seconds(segmenter, splits),
        }
        start = time.monotonic()
        trained = road.train(config, folder / "data", run_dir=folder / "run", out=folder / "full.pth")
        metrics["train_s"] = time.monotonic() - start
        start = time.monotonic()
        found = road.evaluate(trained, folder / "data")
        metrics["evaluation_s_per_image"] = (time.monotonic() - start) / len(splits["test"])
        metrics |= {"miou": found["miou"], "aupr": found["aupr"], "base_rate": found["base_rate"]}
    metrics["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if settings.DEVICE.type == "cuda":
        metrics["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return config.plain(), {"images": f"generated, {SIZE[1]} x {SIZE[0]}", **counts}, metrics


def show(metrics: dict) -> None:
    print("  ".join(f"{key} {value:.3f}" for key, value in metrics.items()))


def main() -> None:
    """Record: assets/results/road/streethazards_rehearsal.json."""
    options = {
        "images": {"type": int, "default": 8},
        "compile": {"type": int, "choices": (0, 1), "default": 0},
    }
    run("tests.benchmark_streethazards", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""What the tests of the sets system share: tiny class folders, CIFAR-100's own layout in small, and a trained model."""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from src import sets, settings

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
COUNTS = {"train": 22, "test": 11}  # images of a class
SIDE = 16  # pixels
TINY = sets.Config(
    dataset="folder", per_class=(12, 10), train_sets=64, val_sets=60, test_sets=200, backbone="convnet",
    pretrained="none", frozen=False, image_size=SIDE, width=16, layers=1, heads=2, pool=(3, 10), class_weight=1.0,
    epochs=2, batch_size=8, optimizer="adamw", lr=1e-3, amp=False,
)  # fmt: skip
FROZEN = replace(TINY, frozen=True, class_weight=0.0)


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu():
    """The same bits on every machine: several tests compare weights and histories exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DEVICE", torch.device("cpu"))
        yield


def redirect(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every folder that is read from or written to by default, inside ``folder``."""
    for name in ("DATA", "WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        patch.setattr(settings, f"{name}_DIR", folder / name.lower())


def picture(rng: np.random.Generator, number: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A noisy image, uint8 (H,W,3), in the colour of class ``number``."""
    colour = 128 + 80 * np.cos(2 * np.pi * (number / len(CLASSES) + np.arange(3) / 3))
    return np.uint8(np.clip(colour + rng.normal(0, 25, (*size, 3)), 0, 255))


def write_image(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A folder of class folders: train/<class>/NNN.png and test/<class>/NNN.png."""
    folder, rng = tmp_path_factory.mktemp("data") / "animals", np.random.default_rng(0)
    for split, count in COUNTS.items():
        for number, name in enumerate(CLASSES):
            for i in range(count):
                write_image(picture(rng, number), folder / split / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory) -> sets.Trained:
    """``TINY``, trained end to end on ``root``."""
    folder = tmp_path_factory.mktemp("trained")
    return sets.train(TINY, root, run_dir=folder / "run", out=folder / "tiny.pth")


@pytest.fixture
def official(monkeypatch) -> Callable[[Path], dict[str, np.ndarray]]:
    """official(folder): writes CIFAR-100 in its authors' form, with few images, and has torchvision take it for whole.

    Returns the pixels (N,3,32,32) of each part; the label of image i of either part is 5 i modulo the classes.
    """

    def write(folder: Path) -> dict[str, np.ndarray]:
        rng, base = np.random.default_rng(3), folder / CIFAR100.base_folder
        base.mkdir(parents=True)
        pixels = {part: rng.integers(0, 256, (count * len(CLASSES), 3, 32, 32), dtype=np.uint8)
                  for part, count in COUNTS.items()}  # fmt: skip
        contents = {
            part: {"data": found.reshape(len(found), -1), "coarse_labels": [0] * len(found),
                   "fine_labels": [5 * i % len(CLASSES) for i in range(len(found))]}
            for part, found in pixels.items()
        }  # fmt: skip
        contents["meta"] = {"fine_label_names": list(CLASSES), "coarse_label_names": ["animal"]}
        sums = {}
        for name, content in contents.items():
            (base / name).write_bytes(pickle.dumps(content))
            sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
        monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
        monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
        monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
        return pixels

    return write

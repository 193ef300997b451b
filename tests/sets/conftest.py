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
from src.system import Trained

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
COUNTS = {"train": 22, "test": 11}  # images of a class
SIDE = 16  # pixels
TINY = sets.Config(
    dataset="folder",
    per_class=(12, 10),
    train_sets=64,
    val_sets=60,
    test_sets=200,
    backbone="convnet",
    pretrained="none",
    frozen=False,
    image_size=SIDE,
    width=16,
    layers=1,
    heads=2,
    pool=(3, 10),
    class_weight=1.0,
    epochs=2,
    batch_size=8,
    optimizer="adamw",
    lr=1e-3,
    amp=False,
)
FROZEN = replace(TINY, frozen=True, class_weight=0.0)


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu():
    """The same bits on every machine: several tests compare weights and histories exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DEVICE", torch.device("cpu"))
        yield


@pytest.fixture(autouse=True)
def project(monkeypatch, tmp_path) -> Path:
    """A folder of this test's own, in which every folder lies that is read from or written to by default."""
    for name in ("DATA", "WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        monkeypatch.setattr(settings, f"{name}_DIR", tmp_path / "project" / name.lower())
    return tmp_path / "project"


def picture(rng: np.random.Generator, number: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """A noisy image, uint8 (H,W,3), in the colour of class ``number``."""
    colour = 128 + 80 * np.cos(2 * np.pi * (number / len(CLASSES) + np.arange(3) / 3))
    return np.uint8(np.clip(colour + rng.normal(0, 25, (*size, 3)), 0, 255))


def write_image(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict().values())


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


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
def trained(root, tmp_path_factory) -> Trained:
    """``TINY``, trained end to end on ``root``."""
    folder = tmp_path_factory.mktemp("trained")
    return sets.train(TINY, root, run_dir=folder / "run", out=folder / "tiny.pth")


@pytest.fixture
def official(monkeypatch) -> Callable[[Path], dict[str, np.ndarray]]:
    """official(folder): writes CIFAR-100 in its authors' form, with few images, and has torchvision accept it.

    Returns the pixels (N,3,32,32) of each part; the label of image i of either part is 5 i modulo the classes.
    """

    def write(folder: Path) -> dict[str, np.ndarray]:
        rng, base = np.random.default_rng(3), folder / CIFAR100.base_folder
        base.mkdir(parents=True)
        pixels, contents = {}, {"meta": {"fine_label_names": list(CLASSES), "coarse_label_names": ["animal"]}}
        for part, per_class in COUNTS.items():
            count = per_class * len(CLASSES)
            pixels[part] = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
            contents[part] = {
                "data": pixels[part].reshape(count, -1),
                "coarse_labels": [0] * count,
                "fine_labels": [5 * i % len(CLASSES) for i in range(count)],
            }
        for name, content in contents.items():
            (base / name).write_bytes(pickle.dumps(content))
        sums = {name: hashlib.md5((base / name).read_bytes()).hexdigest() for name in contents}
        monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
        monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
        monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
        return pixels

    return write

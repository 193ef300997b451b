"""What every test shares: import path, matplotlib without a screen, small data sets, and weights trained on one."""

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from src import road, settings
from src.synthetic import street_scenes, time_series

os.environ["PYTHONPATH"] = str(settings.ROOT)  # notebook kernels start in their own folder
matplotlib.use("Agg")

MINI_COUNTS = {"train": 8, "val": 4, "test": 6}


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _street(rng: np.random.Generator) -> np.ndarray:
    """A photograph's stand-in, uint8 (48,64,3)."""
    return rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory) -> Path:
    """A mini StreetHazards of eighteen scenes of 90x160 pixels."""
    root = tmp_path_factory.mktemp("data") / "mini"
    street_scenes.write_dataset(root, MINI_COUNTS, size=(90, 160), workers=1)
    return root


@pytest.fixture(scope="session")
def camvid_root(tmp_path_factory) -> Path:
    """CamVid's layout: 4 train, 2 val and 3 test frames, labels 0..11 in blocks of 12x16 pixels."""
    root, rng = tmp_path_factory.mktemp("camvid"), np.random.default_rng(0)
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        for number in range(count):
            blocks = rng.permutation(16).reshape(4, 4).astype(np.uint8) % 12
            name = f"0001TP_{number + 8:06d}"
            _save(_street(rng), root / split / f"{name}.jpg")
            _save(blocks.repeat(12, 0).repeat(16, 1), root / f"{split}annot" / f"{name}.png")
    return root


@pytest.fixture(scope="session")
def road_anomaly_root(tmp_path_factory) -> Path:
    """RoadAnomaly's layout: images 1, 2 and 10; the mask value 2 is an anomaly."""
    root, rng = tmp_path_factory.mktemp("road_anomaly"), np.random.default_rng(1)
    for number in (1, 2, 10):
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[10:20, 5 * number : 5 * number + 12] = 2
        _save(_street(rng), root / "images" / f"{number}.jpg")
        _save(mask, root / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny_config() -> road.Config:
    """Two steps of training on ``mini_root``."""
    return road.Config(epochs=1, batch_size=4, width=0.25, image_size=(48, 80), workers=0)


@pytest.fixture(scope="session")
def tiny_weights(mini_root, tiny_config, tmp_path_factory) -> Path:
    """The checkpoint of ``tiny_config`` trained on ``mini_root``, calibrated."""
    folder = tmp_path_factory.mktemp("weights")
    return road.train(tiny_config, mini_root, run_dir=folder / "run", out=folder / "tiny.pth").source


@pytest.fixture(scope="session")
def plenty() -> dict[str, list[time_series.Series]]:
    """Class -> 120 series of the training split."""
    return {label: [time_series.generate(label, i, seed=3) for i in range(120)] for label in time_series.CLASSES}


@pytest.fixture(scope="session")
def one_each() -> list[time_series.Series]:
    """One series of each class, of every length."""
    return [time_series.generate(label, number, seed=3) for number, label in enumerate(time_series.CLASSES)]


@pytest.fixture
def killed_at(monkeypatch):
    """``killed_at(module, batch)``: that call of the module's ``loss`` is interrupted; gives the calls."""

    def arrange(module, batch: int) -> list[int]:
        calls, loss = [], module.loss

        def counted(*arguments, **options):
            calls.append(1)
            if len(calls) == batch:
                raise KeyboardInterrupt
            return loss(*arguments, **options)

        monkeypatch.setattr(module, "loss", counted)
        return calls

    return arrange

"""What the tests of the series system share: where files go, a small data set of plots, and models trained on it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import series, settings, system
from src.synthetic import time_series
from tests.series.helpers import TINY, write_plots


def pixels(path: Path) -> np.ndarray:
    """An image file as uint8 (H,W,3)."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu():
    """The same bits on every machine: several tests compare weights and probabilities exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DEVICE", torch.device("cpu"))
        yield


@pytest.fixture
def project(monkeypatch, tmp_path) -> Path:
    """A folder of this test's own, in which every folder lies that is read from or written to by default."""
    for name in ("DATA", "WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        monkeypatch.setattr(settings, f"{name}_DIR", tmp_path / "project" / name.lower())
    return tmp_path / "project"


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """train and test of all classes, 5 and 2 plots of each, with what the generator knows of them, and no val."""
    folder = tmp_path_factory.mktemp("data") / "plots"
    time_series.write_metadata(write_plots(folder, {"train": 5, "test": 2}), folder / "metadata.json")
    return folder


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory) -> system.Trained:
    folder = tmp_path_factory.mktemp("trained")
    return series.train(TINY, root, run_dir=folder / "run", out=folder / "tiny.pth")


@pytest.fixture(scope="session")
def crossed(root, tmp_path_factory) -> tuple[system.Trained, system.Trained]:
    """The network of all plots, and those of the folds."""
    folder = tmp_path_factory.mktemp("crossed")
    config = replace(TINY, cross_validate=True, lr=1e-2)
    of_all = series.train(config, root, run_dir=folder / "run", out=folder / "out.pth")
    return of_all, system.load(series, folder / "out_folds.pth", config)

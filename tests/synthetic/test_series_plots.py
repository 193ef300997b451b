"""Plots as specified, whatever was drawn before, and the data set of them."""

import hashlib
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from src import plots
from src.synthetic import series_plots, time_series
from tests.series.conftest import pixels

COUNTS = {"train": 1, "val": 0, "test": 1}


def digests(root: Path) -> dict:
    """Relative name of every file below root -> SHA-256."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_reused_figure_draws_what_a_fresh_one_does(tmp_path, one_each):
    for one in one_each:  # each after the one before it
        series_plots.draw(one.values, tmp_path / "reused.png")
        with plt.style.context("default"):
            figure, axes = plt.subplots(figsize=(8, 6), dpi=100)
            axes.plot(one.values, color="#1f77b4", linewidth=1.5)
            axes.set_xlabel("Time", fontsize=12)
            axes.set_ylabel("Value", fontsize=12)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            figure.tight_layout()
            figure.savefig(tmp_path / "fresh.png", dpi=100, bbox_inches="tight")
            plt.close(figure)
        np.testing.assert_array_equal(pixels(tmp_path / "reused.png"), pixels(tmp_path / "fresh.png"), one.label)


def test_the_style_of_other_figures_does_not_matter(tmp_path, one_each):
    series_plots.draw(one_each[0].values, tmp_path / "a.png")
    with plt.rc_context():
        plots.style()
        series_plots.draw(one_each[0].values, tmp_path / "b.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data set of eighteen series, seed 7."""
    root = tmp_path_factory.mktemp("series") / "mini"
    series_plots.write_dataset(root, seed=7, counts=COUNTS, workers=1)
    return root


def test_layout(root):
    stems = [f"{split}/{label}/000" for split in ("train", "test") for label in time_series.CLASSES]
    files = {f"{stem}.{kind}" for stem in stems for kind in ("png", "csv")}
    assert set(digests(root)) == files | {".version", "metadata.json"}
    assert set(json.loads((root / "metadata.json").read_text())["series"]) == set(stems)
    assert not root.with_name("mini.partial").exists()
    for path in root.rglob("*.png"):
        height, width = pixels(path).shape[:2]
        assert abs(width - 790) <= 3 and abs(height - 590) <= 3


def test_worker_processes_write_the_same(root, tmp_path):
    series_plots.write_dataset(tmp_path / "mini", seed=7, counts=COUNTS, workers=2)
    assert digests(tmp_path / "mini") == digests(root)


def test_a_whole_data_set_is_kept_and_another_rebuilt(tmp_path, monkeypatch):
    root, nothing = tmp_path / "mini", {"train": 0, "val": 0, "test": 0}
    series_plots.write_dataset(root, seed=1, counts=nothing, workers=1)
    (root / "stale.png").touch()
    series_plots.write_dataset(root, seed=1, counts=nothing, workers=1)
    assert (root / "stale.png").exists()
    series_plots.write_dataset(root, seed=2, counts=nothing, workers=1)
    assert not (root / "stale.png").exists()
    (root / "stale.png").touch()
    monkeypatch.setattr(series_plots, "VERSION", series_plots.VERSION + 1)
    series_plots.write_dataset(root, seed=2, counts=nothing, workers=1)
    assert not (root / "stale.png").exists()

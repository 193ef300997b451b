"""What the tests of the defects system share: the mini textures in small numbers, and other tiny images on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import settings
from src.defects import Config
from src.defects.data import DefectDataset
from src.defects.layouts import NORMAL, Item
from src.synthetic import textures

TEXTURE_COUNTS = {"train": 7, "test": 2, "defect": 1, "teacher": 20}
TINY = Config(
    categories=("fabric", "tiles"),
    image_size=48,
    epochs=2,
    batch_size=3,
    lr=3e-3,
    width=4,
    descriptor=8,
    students=2,
    workers=0,
    amp=False,
    pretrained="none",
    patch_pixels=32,
    teacher_width=4,
    teacher_images="mini/defects/teacher",
    teacher_image_size=(40, 64),
    teacher_epochs=1,
    teacher_batch_size=6,
    patches_per_image=8,
)


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu():
    """The same bits on every machine: several tests compare weights and histories exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DEVICE", torch.device("cpu"))
        yield


@pytest.fixture(scope="session")
def textures_root(tmp_path_factory) -> Path:
    """``mini/defects`` below a folder of its own, which can stand in for DATA_DIR."""
    root = tmp_path_factory.mktemp("data") / "mini" / "defects"
    root.parent.mkdir()
    textures.write_dataset(root, counts=TEXTURE_COUNTS)
    return root


def redirect(patch: pytest.MonkeyPatch, data_dir: Path, folder: Path) -> None:
    """Every folder that is written to, inside ``folder``."""
    patch.setattr(settings, "DATA_DIR", data_dir)
    for name in ("WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        patch.setattr(settings, f"{name}_DIR", folder / name.lower())


@pytest.fixture
def folders(monkeypatch, tmp_path, textures_root) -> Path:
    """Data from the textures, everything else in a folder of the test."""
    redirect(monkeypatch, textures_root.parents[1], tmp_path)
    return tmp_path


@pytest.fixture
def stripes(tmp_path) -> Callable[..., DefectDataset]:
    """stripes(kinds, size): a data set of one noisy striped image for each kind of defect named, masks 6 x 7 pixels."""

    def write(kinds=(NORMAL,) * 4, size=(40, 52), seed: int = 0) -> DefectDataset:
        rng, items = np.random.default_rng(seed), []
        for number, kind in enumerate(kinds):
            wave = np.sin(np.arange(size[1]) * 0.7 + rng.uniform(0, 6))[None, :, None]
            image = 120 + 60 * wave * rng.uniform(0.5, 1, 3) + rng.normal(0, 12, (*size, 3))
            mask = np.zeros(size, dtype=np.uint8)
            if kind != NORMAL:
                y, x = rng.integers(0, (size[0] - 6, size[1] - 7))
                mask[y : y + 6, x : x + 7] = 255
                image[mask > 0] = rng.uniform(0, 255, 3)
            paths = [tmp_path / f"stripes{seed}" / f"{number}{suffix}.png" for suffix in ("", "_mask")]
            paths[0].parent.mkdir(exist_ok=True)
            for path, array in zip(paths, (np.uint8(np.clip(image, 0, 255)), mask), strict=True):
                Image.fromarray(array).save(path)
            items.append(Item(paths[0], kind, None if kind == NORMAL else paths[1]))
        return DefectDataset(items, tmp_path)

    return write

"""README's commands, in its order, on small data of the kind they talk of, with tiny settings appended."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import settings
from src.__main__ import main
from tests.series.helpers import write_plots

ROOT = Path(__file__).resolve().parents[1]
# What is not run here, and why. `make test` itself runs what sets up, writes the mini data and executes notebooks.
EXEMPT = {
    "make": 2,  # of which this test is a part
    "python3 -m venv": 1,
    "pip install": 1,
    "python -m src road data": 1,
    "python -m src defects data": 1,
    "python -m src sets data": 1,
    "python -m src series data": 1,
    "jupyter": 1,
    "pytest": 2,
    "python -m src road|defects|sets|series": 1,  # the synopsis
    "[--root DIR]": 1,
    "python -m src ablate": 1,  # hours
    "./download.sh": 2,  # network; tested against a local server
    "python -m src road train --profile full": 1,  # COCO weights from the network, on a GPU
    "torchrun": 1,
}
TINY = {  # settings of a training that takes seconds; pretrained weights would come from the network
    "road": "pretrained=none image_size=(48,) crop_size=(32,48) epochs=1 decoder_epochs=1 outlier_epochs=1 "
    "batch_size=2 workers=0",
    "defects": "image_size=64 crop_size=0 epochs=1 students=1 width=4 batch_size=2 workers=0",
    "sets": "pretrained=none image_size=32 epochs=1 pool=3,10 batch_size=8 val_sets=20 test_sets=20 workers=0",
    "series": "epochs=1 folds=2 batch_size=8 workers=0",
}


def commands() -> list[str]:
    """The lines of README's code blocks, without comments, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    lines = [line.split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def exempt(line: str) -> str:
    """The entry of EXEMPT that a line begins with, or "" where it is to run."""
    return next((start for start in EXEMPT if line.startswith(start)), "")


def image(path: Path, seed: int, size: tuple[int, int] = (48, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path, monkeypatch, camvid_root) -> dict[str, Path]:
    """system -> what README calls DIR; the test stands in a project of its own, with links to the committed weights."""
    monkeypatch.chdir(tmp_path)
    for name, place in (
        ("WEIGHTS", "assets/weights"),
        ("RESULTS", "assets/results"),
        ("RUNS", "runs"),
        ("DATA", "data"),
    ):
        monkeypatch.setattr(settings, f"{name}_DIR", tmp_path / place)
    monkeypatch.setattr(settings, "DEVICE", torch.device("cpu"))
    for file in (ROOT / "assets/weights").glob("*/*.pth"):
        link = tmp_path / "assets/weights" / file.relative_to(ROOT / "assets/weights")
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.stem != "camvid":  # README trains it
            link.symlink_to(file)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/camvid").symlink_to(camvid_root)
    for number in range(16):
        image(tmp_path / f"parts/images/{'good' if number < 12 else 'defect'}/{number}.png", number, (64, 64))
    for number in range(180):
        image(tmp_path / f"classes/train/{number % 3}/{number}.png", number, (32, 32))
    write_plots(tmp_path / "series", {"train": 2})
    image(tmp_path / "street.jpg", 0)
    image(tmp_path / "part.jpg", 1, (64, 64))
    for number, name in enumerate("acde"):
        image(tmp_path / f"{name}.png", number, (32, 32))
    (tmp_path / "b.png").write_bytes(next((tmp_path / "series").rglob("*.png")).read_bytes())
    values = np.random.default_rng(0).standard_normal(80).cumsum()
    (tmp_path / "a.csv").write_text("value\n" + "\n".join(f"{value:.3f}" for value in values))
    return {"defects": tmp_path / "parts", "sets": tmp_path / "classes", "series": tmp_path / "series"}


def test_every_line_runs_as_written(folders):
    """An error says which line, as it stands in README, does not work after those before it."""
    for line in commands():
        if exempt(line):
            continue
        arguments = shlex.split(line)[3:]
        assert shlex.split(line)[:3] == ["python", "-m", "src"], line
        system, action = arguments[:2]
        arguments = [str(folders[system]) if word == "DIR" else word for word in arguments]
        tiny = TINY[system].split() if action == "train" else []
        assert main([*arguments, *tiny]) == 0, line


def test_what_is_exempt_is_counted():
    lines = [exempt(line) for line in commands()]
    assert {start: lines.count(start) for start in EXEMPT} == EXEMPT and len(lines) - lines.count("") == 18

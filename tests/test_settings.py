"""Every setting can be given by the environment; what cannot be used is refused by name."""

import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src import settings

PROJECT = Path(settings.__file__).resolve().parents[1]
NAMES = ("ROOT", "DATA_DIR", "PROFILE", "RUN_TRAINING", "SEED", "DEVICE")


@pytest.fixture
def fresh(monkeypatch):
    """fresh(NAME=value, ...): the settings as evaluated under that environment and no other."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def evaluate(**environment: str) -> dict:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        names = runpy.run_path(settings.__file__)
        return names | {"DEVICE": names["__getattr__"]("DEVICE")}

    return evaluate


def test_environment_of_a_real_process(tmp_path):
    values = {"ROOT": str(tmp_path), "DATA_DIR": str(tmp_path / "there"), "PROFILE": "full"}
    values |= {"RUN_TRAINING": "1", "SEED": "7", "DEVICE": "cpu"}
    code = f"from src import settings as s; print(*(getattr(s, name) for name in {NAMES}), s.WEIGHTS_DIR, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | values,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [*values.values(), str(tmp_path / "assets" / "weights")]
    expected[NAMES.index("RUN_TRAINING")] = "True"
    assert result.stdout.split("\n")[:-1] == expected


def test_defaults(fresh):
    names = fresh()
    assert names["ROOT"] == Path(settings.__file__).resolve().parents[1]
    assert names["DATA_DIR"] == names["ROOT"] / "data"
    assert (names["PROFILE"], names["RUN_TRAINING"], names["SEED"]) == ("mini", False, 42)
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert names["DEVICE"] == torch.device("cpu")


def test_folders_follow_root_and_are_absolute(fresh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = fresh(ROOT="project")
    assert names["ROOT"] == tmp_path / "project"
    for name in ("DATA_DIR", "WEIGHTS_DIR", "RESULTS_DIR", "FIGURES_DIR", "RUNS_DIR"):
        assert names[name].is_relative_to(tmp_path / "project")
    assert fresh(DATA_DIR="~/images")["DATA_DIR"] == Path.home() / "images"


@pytest.mark.parametrize(("text", "value"), [("0", False), ("1", True), ("true", True), ("False", False)])
def test_run_training(fresh, text, value):
    assert fresh(RUN_TRAINING=text)["RUN_TRAINING"] is value


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("PROFILE", "tiny", "mini, real, full"),
        ("RUN_TRAINING", "yes", "0, 1, true or false"),
        ("SEED", "forty", "an integer"),
        ("DEVICE", "gpu", "expected one of .*cpu on this machine"),
        ("ROOT", "", "a folder"),
        ("ROOT", __file__, "a folder"),
        ("DATA_DIR", __file__, "a folder"),
    ],
    ids=lambda value: value.rsplit("/", 1)[-1],
)
def test_bad_values_are_named_with_the_remedy(fresh, name, text, remedy):
    with pytest.raises(ValueError, match=f"(?s)^{name}={text!r}.*{remedy}"):
        fresh(**{name: text})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_here_is_refused(fresh):
    with pytest.raises(ValueError, match="^DEVICE='cuda': expected one of .*cpu on this machine"):
        fresh(DEVICE="cuda")


def test_seed_everything():
    def draw() -> tuple:
        return random.random(), np.random.random(), torch.rand(1).item()

    settings.seed_everything(3)
    first = draw()
    assert draw() != first
    settings.seed_everything(3)
    assert draw() == first
    settings.seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    settings.seed_everything(2**40)  # beyond what NumPy accepts by itself


def test_convolutions_are_in_full_precision(fresh):
    torch.backends.cudnn.allow_tf32 = True
    fresh()
    assert not torch.backends.cudnn.allow_tf32


def test_torch_is_not_imported_before_the_device_is_asked_for():
    heavy = ("torch", "torchvision", "sklearn", "scipy", "matplotlib")
    code = f"""
import sys
from src import __main__, settings
for name in __main__.SYSTEMS:
    __import__(f"src.{{name}}.config")
    __main__.parser()
print([name for name in {heavy} if name in sys.modules])
settings.DEVICE
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True"]


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'GPU'"):
        settings.GPU  # noqa: B018

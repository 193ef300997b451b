"""Paths, profile, flags, seed and device: the only module that reads the environment, but for torchrun's RANK.

Every setting has the environment variable of its own name (``PROFILE=real python -m src ...``). torch takes seconds to
import, so it is imported on the first use of ``settings.DEVICE``: wrong arguments are reported before.
"""

import os
import random
from pathlib import Path
from typing import Any

PROFILES = ("mini", "real", "full")


class InputError(ValueError):
    """Something given by the user that cannot be used; the message names it and the remedy."""


def _choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        raise InputError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
    return value


def _flag(name: str, default: bool) -> bool:
    value = os.environ.get(name, str(int(default))).strip().lower()
    if value not in ("0", "1", "true", "false"):
        raise InputError(f"{name}={value!r}: expected 0, 1, true or false")
    return value in ("1", "true")


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError as error:
        raise InputError(f"{name}={value!r}: expected an integer") from error


def _folder(name: str, default: Path) -> Path:
    value = os.environ.get(name, str(default))
    path = Path(value).expanduser().absolute()
    if not value or path.is_file():
        raise InputError(f"{name}={value!r}: expected a folder")
    return path


def _device():
    """The torch device to compute on; under torchrun each process owns one GPU."""
    import torch

    # Ten bits of mantissa in the GPU's convolutions would move scores that notebooks check against their records;
    # training is mixed precision anyway
    torch.backends.cudnn.allow_tf32 = False
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, there in present.items() if there]
    value = os.environ.get("DEVICE", usable[0])
    if value.split(":")[0] not in usable:
        raise InputError(f"DEVICE={value!r}: expected one of {', '.join(usable)} on this machine")
    device = torch.device(value)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


ROOT = _folder("ROOT", Path(__file__).resolve().parents[1])
DATA_DIR = _folder("DATA_DIR", ROOT / "data")
WEIGHTS_DIR = ROOT / "assets" / "weights"
RESULTS_DIR = ROOT / "assets" / "results"
FIGURES_DIR = ROOT / "assets" / "figures"
RUNS_DIR = ROOT / "runs"
PROFILE = _choice("PROFILE", "mini", PROFILES)
RUN_TRAINING = _flag("RUN_TRAINING", False)
SEED = _integer("SEED", 42)


def __getattr__(name: str) -> Any:
    if name != "DEVICE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["DEVICE"] = _device()
    return globals()["DEVICE"]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device) with one number."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

"""Checkpoints: written atomically, read without executing code, refused with a reason.

A checkpoint is one dict of tensors and plain values::

    {"format": 1, "weights": state dict, "config": {...}, "step": int, "epoch": int,
     "metric": {"name": str, "value": float}, "torch": version, "extras": {...}}

``extras`` holds what a system needs beside the weights (statistics, thresholds, curves); ``step``, ``epoch`` and
``metric`` are those of a run's ``best.pth``, and may be missing elsewhere.
"""

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum

from src import settings

FORMAT = 1
LIMIT = 20_000_000  # bytes of a committed weights file


class CheckpointError(settings.InputError):
    """A checkpoint that is missing, damaged, foreign or made with another config."""


def save(path: Path | str, weights: dict, *, half: bool = False, **fields: Any) -> Path:
    """Write a checkpoint so that a reader sees the old file or the new one, never a part.

    ``half`` stores floating-point weights as fp16 (they load back as fp32): half the file for a rounding of
    at most 2^-11 relative (2^-25 absolute below 2^-14); a weight outside fp16's range is an error.
    ``fields`` are added as they are.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    if half:
        weights = {name: _to_half(name, tensor) for name, tensor in weights.items()}
    write({"format": FORMAT, "torch": str(torch.__version__), "weights": weights, **fields}, path)
    return Path(path)


def write(content: dict, path: Path | str) -> None:
    """``torch.save`` through a temporary file in the same folder: write, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def round_to_fit(model: nn.Module) -> bool:
    """Round the model's weights to fp16 in place if only so its file stays within LIMIT; whether it did."""
    state = model.state_dict()
    size = sum(t.numel() * t.element_size() for t in state.values())
    half = size > LIMIT >= size // 2
    if half:
        model.load_state_dict({name: _to_half(name, tensor).float() if tensor.is_floating_point() else tensor
                               for name, tensor in state.items()})  # fmt: skip
    return half


def _to_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not torch.isfinite(half).all():
        raise CheckpointError(f"{name} is not finite or exceeds the range of fp16 (65504): save it with half=False")
    return half


def read(path: Path | str) -> dict:
    """The raw content of a torch file, loaded with ``weights_only``.

    Raises CheckpointError naming the file and the remedy when it is missing, truncated or holds
    anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; check the path, or train or download it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):  # say nothing about the content
        raise
    except Exception as error:  # torch reports damage by many exception types; all mean the same here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or not a checkpoint ({reason}); delete it and fetch or train it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint; check the file name")
    return content


def pretrained(weights: WeightsEnum, file: Path | str | None) -> dict:
    """The state dict in ``file``, or else the one torchvision publishes as ``weights``, checksum verified."""
    if file:
        return read(file)
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot download {weights.url} ({error}); connect, or name a local copy with --weights FILE"
        ) from error


def load(path: Path | str) -> dict:
    """A checkpoint of this project with fp32 weights; CheckpointError for any other file."""
    content = read(path)
    if content.get("format") != FORMAT or not {"weights", "config"} <= content.keys():
        raise CheckpointError(f"{path} was not written by this project; train or download its own weights")
    content["weights"] = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content["weights"].items()
    }
    return content


def load_finished(path: Path | str) -> dict:
    """``load`` of what a system's training wrote at its end; CheckpointError for the file of a run under way."""
    content = load(path)
    if "extras" not in content:
        raise CheckpointError(f"{path} is of a run that has not ended: let it, and use what it writes")
    return content


def described(path: Path | str) -> dict[str, float]:
    """``parameters, M`` (with the statistics of normalisation), ``minutes`` of training, ``MB`` of the file.

    Minutes add up every history that the checkpoint holds, validation after each epoch included.
    """
    content = load(path)
    kept = [value for name, value in content.get("extras", {}).items() if name.endswith("history")]
    histories = [rows for value in kept for rows in (value.values() if isinstance(value, dict) else [value]) if rows]
    return {
        "parameters, M": sum(tensor.numel() for tensor in content["weights"].values()) / 1e6,
        "minutes": sum(rows[-1]["seconds"] for rows in histories) / 60,
        "MB": Path(path).stat().st_size / 1e6,
    }


def is_bare_state_dict(content: dict) -> bool:
    """Whether a file holds only named tensors, as torchvision's own weight files do."""
    return bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())


def load_weights(model: nn.Module, weights: dict, source: Path | str) -> None:
    """``load_state_dict`` whose failure names the file and the first differing entries."""
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = sorted(n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape)
    if missing or unexpected or shapes:
        lists = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        reason = "; ".join(f"{len(v)} {k} (first: {v[0]})" for k, v in lists.items() if v)
        raise CheckpointError(f"{source} does not fit the model: {reason}")
    model.load_state_dict(weights)


def config_differences(ours: dict, theirs: dict) -> list[str]:
    """One line per setting in which two configs differ; values compare as their plain (list) form."""
    ours, theirs = plain(ours), plain(theirs)
    keys = sorted(ours.keys() | theirs.keys())
    absent = "(absent)"
    return [
        f"{key}: {theirs.get(key, absent)!r} in the file, {ours.get(key, absent)!r} asked for"
        for key in keys
        if ours.get(key, absent) != theirs.get(key, absent)
    ]


def plain(value: Any) -> Any:
    """Config values in the form a checkpoint or JSON keeps them: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def require_same_config(config: Any, content: dict, source: Path | str) -> None:
    """Raise CheckpointError listing every setting in which ``config``, a dataclass, and the checkpoint's own differ.

    A setting that is younger than the checkpoint counts there as it does in the config's defaults.
    """
    kind = type(config)
    differences = config_differences(asdict(config), asdict(kind()) | kind.known(content["config"]))
    if differences:
        raise CheckpointError(
            f"{source} was made with another config:\n  "
            + "\n  ".join(differences)
            + "\nuse the same settings or another weights file, or move this one away to train anew"
        )


def load_or_train(system: ModuleType, config: Any, root: Path | None, run_training: bool, weights: Path | None = None):
    """The trained model of a system's config. Three states and no fourth.

    Weights that exist are loaded; what is missing is trained (from ``weights``, if given) if training is on; else
    CheckpointError names the command that makes it. A file that cannot be loaded never becomes a training run.
    """
    path = system.weights_path(config)
    if not path.exists():
        if not run_training:
            command = f"{train_command(system, config, weights)}    (or ./download.sh weights)"
            raise CheckpointError(f"{path} is missing and training is off. Make it with:\n  {command}")
        system.train(config, root, weights=weights)
    require_same_config(config, load(path), path)
    return system.load(path, config)


def train_command(system: ModuleType, config: Any, weights: Path | None = None) -> str:
    """What trains the model of a system's config that is one of its profiles', from ``weights`` of the project."""
    name, whole, real = system.__name__.rpartition(".")[2], type(config).full(), config.dataset in system.REAL
    full = config == whole or (config.dataset == whole.dataset and not real)
    profile = "full" if full else "real" if real else "mini"
    start = f" --weights {weights.relative_to(settings.ROOT)}" if weights else ""
    return f"python -m src {name} train --profile {profile} --dataset {config.dataset}{start}"

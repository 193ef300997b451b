"""Checkpoints: written atomically, read without executing code, refused with a reason.

A checkpoint is one dict of tensors and plain values::

    {"format": 1, "weights": state dict, "config": {...}, "step": int, "epoch": int,
     "metric": {"name": str, "value": float}, "torch": version, "extras": {...}}

``extras`` holds what a system needs beside the weights (statistics, thresholds, curves); ``step``, ``epoch`` and
``metric`` are those of a run's ``best.pth``, and may be missing elsewhere.
"""

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from src import files, settings
from src.config import Config

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

FORMAT = 1
LIMIT = 20_000_000  # bytes of a committed weights file
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which other code keeps a state dict
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of DataParallel, torch.compile and Lightning


class CheckpointError(settings.InputError):
    """A checkpoint that is missing, damaged, foreign, unsafe or made with another config."""


# --------------------------------------------------------------------------------------------- writing
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
    """``torch.save``, atomically; InputError where the system refuses to write."""
    serialized = io.BytesIO()  # torch.save turns a full disk into a RuntimeError about positions in the file
    torch.save(content, serialized)
    with files.atomic(path) as file:
        file.write(serialized.getbuffer())


def round_to_fit(model: nn.Module) -> bool:
    """Round the model's weights to fp16 in place if only so its file stays within LIMIT; whether it did."""
    state = model.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    half = size > LIMIT >= size // 2
    if half:
        model.load_state_dict({name: _to_float(_to_half(name, tensor)) for name, tensor in state.items()})
    return half


def _to_half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not torch.isfinite(half).all():
        raise CheckpointError(f"{name} is not finite or exceeds the range of fp16 (65504): save it with half=False")
    return half


def _to_float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


# --------------------------------------------------------------------------------------------- reading
def read(path: Path | str) -> dict:
    """The raw content of a torch file, loaded with ``weights_only``; the checksums of a zip archive are verified.

    Raises CheckpointError naming the file and the remedy when it is missing, damaged, no PyTorch file, or holds
    anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; check the path, or train or download it")
    try:
        is_archive = _is_archive(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if is_archive:
        _verify_checksums(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing about the content
        raise
    except Exception as error:  # torch reports what it cannot load by many exception types
        raise CheckpointError(f"{path} {_refusal(error, is_archive)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint; check the file name")
    return content


def _is_archive(path: Path) -> bool:
    """Whether a file begins as zip archives do: torch's format since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _verify_checksums(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile reports damage by many exception types too
        damaged = str(error)
    if damaged:
        raise CheckpointError(f"{path} is damaged ({damaged}); delete it and fetch or train it again")


def _refusal(error: Exception, is_intact: bool) -> str:
    """Why torch cannot load a file, as the end of a sentence; ``is_intact`` where checksums have shown that it is."""
    forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
    if forbidden or (is_intact and isinstance(error, pickle.UnpicklingError)):
        kind = f" ({forbidden[1]})" if forbidden else ""
        return (
            f"is unsafe: it holds Python objects{kind}, which may run code when loaded; "
            "where it was written, save model.state_dict() alone"
        )
    if is_intact:
        return "is a zip archive, but not of PyTorch weights; check the file name"
    return "is damaged or not a PyTorch file; delete it and fetch or train it again"


def load(path: Path | str) -> dict:
    """A checkpoint of this project with fp32 weights; CheckpointError for any other file."""
    content = read(path)
    if content.get("format") != FORMAT or not {"weights", "config"} <= content.keys():
        raise CheckpointError(f"{path} was not written by this project; train or download its own weights")
    content["weights"] = {name: _to_float(tensor) for name, tensor in content["weights"].items()}
    return content


def load_finished(path: Path | str) -> dict:
    """``load`` of what a system's training wrote at its end; CheckpointError for the file of a run under way."""
    content = load(path)
    if "extras" not in content:
        raise CheckpointError(f"{path} is of a run that has not ended: let it, and use what it writes")
    return content


def summary(path: Path | str) -> dict[str, float]:
    """``parameters, M`` (with the statistics of normalisation), ``minutes`` of training, ``MB`` of the file.

    Minutes add up every history that the checkpoint holds, validation after each epoch included.
    """
    content = load(path)
    histories = []
    for name, value in content.get("extras", {}).items():
        if name.endswith("history"):
            histories += value.values() if isinstance(value, dict) else [value]
    return {
        "parameters, M": sum(tensor.numel() for tensor in content["weights"].values()) / 1e6,
        "minutes": sum(history[-1]["seconds"] for history in histories if history) / 60,
        "MB": Path(path).stat().st_size / 1e6,
    }


# ------------------------------------------------------------------------------------- weights of others
def pretrained(weights: "WeightsEnum", file: Path | str | None) -> dict:
    """The state dict in ``file``, or else the one torchvision publishes as ``weights``, checksum verified."""
    if file:
        return unwrapped(read(file))
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot download {weights.url} ({error}); connect, or name a local copy with --weights FILE"
        ) from error


def unwrapped(content: dict) -> dict:
    """The state dict in a file of other code, out of its wrapper and without prefixes that all names have.

    Other content, such as a checkpoint of this project, is returned as it is.
    """
    for wrapper in WRAPPERS:
        if is_bare_state_dict(content.get(wrapper)):
            content = content[wrapper]
    while is_bare_state_dict(content):
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in content)), None)
        if not prefix:
            break
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


def is_bare_state_dict(content: Any) -> bool:
    """Whether the content of a file is only named tensors, as in torchvision's own weight files."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def load_weights(model: nn.Module, weights: dict, source: Path | str) -> None:
    """``load_state_dict``; CheckpointError naming the file and the first entry that does not fit or is not finite."""
    expected = model.state_dict()
    differences = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {
            name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape
        },
    }
    reasons = [f"{len(names)} {kind} (first: {min(names)})" for kind, names in differences.items() if names]
    if reasons:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(reasons)}")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source} holds NaN or infinite weights in {name}; train or download it again")
    model.load_state_dict(weights)


# ---------------------------------------------------------------------------------------------- config
def config_differences(ours: dict, theirs: dict) -> list[str]:
    """One line per setting in which two configs in plain form (``Config.plain``) differ."""
    absent = "(absent)"
    return [
        f"{key}: {theirs.get(key, absent)!r} in the file, {ours.get(key, absent)!r} asked for"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, absent) != theirs.get(key, absent)
    ]


def require_same_config(config: Config, content: dict, source: Path | str) -> None:
    """Raise CheckpointError listing every setting in which ``config`` and the checkpoint's own differ.

    A setting that is younger than the checkpoint counts there as it does in the config's defaults.
    """
    kind = type(config)
    differences = config_differences(config.plain(), kind().plain() | kind.current(content["config"]))
    if differences:
        raise CheckpointError(
            f"{source} was made with another config:\n  "
            + "\n  ".join(differences)
            + "\nuse the same settings or another weights file, or move this one away to train anew"
        )

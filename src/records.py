"""The JSON record of a run, and the tables read back from records."""

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from src import files, settings

TOLERANCE = 1e-3  # of a number computed anew on another machine


class ResultError(settings.InputError):
    """A record that is missing or lacks a key."""


# ------------------------------------------------------------------------------------------ provenance
def fingerprint(paths: Iterable[Path], root: Path) -> dict[str, Any]:
    """Number of files and one SHA-256 over their sorted names relative to ``root`` and their contents."""
    paths, digest = sorted(paths), hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"files": len(paths), "sha256": digest.hexdigest()}


def git_revision() -> str:
    """Commit of the code, ``-dirty`` added when files under src differ from it, ``unknown`` outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git here, or no commit to name
        return "unknown"
    return head + ("-dirty" if _git("status", "--porcelain", "src") else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(settings.ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def device_name() -> str:
    """The GPU's name, or the kind of CPU and its number of threads."""
    import torch

    if settings.DEVICE.type == "cuda":
        return torch.cuda.get_device_name(settings.DEVICE)
    return f"{settings.DEVICE.type}, {platform.machine()}, {torch.get_num_threads()} threads"


def provenance(command: str, config: dict, data: dict, protocol: str, seconds: float) -> dict[str, Any]:
    """The fields of a record that say where its metrics come from; ``config`` in plain form."""
    import torch

    return {
        "command": command,
        "git_revision": git_revision(),
        "config": plain(config),
        "seed": config["seed"],
        "data": data,
        "protocol": protocol,
        "wall_time": round(seconds, 1),
        "device": device_name(),
        "torch": str(torch.__version__),
    }


# ------------------------------------------------------------------------------------- writing, reading
def write(content: dict, path: Path | str) -> Path:
    """Write JSON atomically; NaN becomes null, as JSON has no NaN."""
    text = json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
    with files.atomic(path) as file:
        file.write(text.encode())
    return Path(path)


def plain(value: Any) -> Any:
    """A value in the form that JSON gives back: keys are strings, tuples lists, NaN is None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def record_path(system: str, run: str) -> Path:
    """Where the record of a run is kept."""
    return settings.RESULTS_DIR / system / f"{run}.json"


def load(system: str, run: str) -> dict[str, Any]:
    """The record ``assets/results/<system>/<run>.json``; ResultError if it is missing or not JSON."""
    path = record_path(system, run)
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        remedy = "`git checkout` restores a committed one, `python -m src SYSTEM evaluate --json` writes a system's"
        raise ResultError(f"{path} is missing or damaged ({error}); {remedy}") from error


def value(system: str, run: str, key: str) -> Any:
    """One entry of a record by its dotted key, such as ``protocols.pooled.msp.aupr``."""
    entry: Any = load(system, run)
    for part in key.split("."):
        try:
            entry = entry[int(part)] if isinstance(entry, list) else entry[part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ResultError(f"record {system}/{run} has no entry {key!r} (at {part!r})") from error
    return entry


def check_against_record(metrics: dict[str, Any], system: str, run: str) -> dict[str, Any]:
    """The record of a run after checking metrics computed anew against it; the metrics where there is no record.

    Showing the record keeps a notebook's text the same on every machine, although sums of floats differ in
    their last digits. Raises ResultError naming the first number that differs by more than TOLERANCE, and where the
    two have none in common.
    """
    if not record_path(system, run).exists():
        return metrics
    record = load(system, run)
    recorded, computed = dict(_floats(record)), dict(_floats(metrics))
    shared = [key for key in recorded if key in computed]
    if not shared:
        raise ResultError(f"{system}/{run} and the metrics computed anew have no number in common")
    for key in shared:
        if not abs(computed[key] - recorded[key]) <= TOLERANCE:
            raise ResultError(
                f"{system}/{run}: {key} is {recorded[key]} in the record, {computed[key]} when computed anew: code, "
                "data or packages have changed (requirements.lock names those of the record); "
                f"`{record['command']}` writes it again"
            )
    return record


def _floats(entry: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, value) of every float in nested dicts and lists."""
    items = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list | tuple) else ()
    for key, value in items:
        if isinstance(value, float) and not math.isnan(value):
            yield f"{prefix}{key}", value
        else:
            yield from _floats(value, f"{prefix}{key}.")


def table(rows: dict[str, dict[str, Any]], digits: int = 3, corner: str = "") -> str:
    """Rows of named values as a Markdown table; floats rounded, missing values a dash, words to the left."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns = [[_cell(row.get(key), digits) for row in rows.values()] for key in keys]
    alignments = ["---" if any(cell[:1].isalpha() for cell in column) else "---:" for column in columns]
    lines = [[corner, *keys], ["---", *alignments], *zip(rows, *columns, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(entry: Any, digits: int) -> str:
    if entry is None or entry != entry:  # NaN
        return "–"
    return f"{entry:.{digits}f}" if isinstance(entry, float) else str(entry)

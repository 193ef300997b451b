"""Configs as frozen dataclasses: checked when they are made, read back from checkpoints, changed by ``key=value``."""

import ast
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self, get_args

from src import settings

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "poly", "cosine", "plateau")


@dataclass(frozen=True)
class Config:
    """What every config can do.

    Checkpoints, records and commands outlive the names of settings. ``RENAMED`` maps a setting, or a (setting, value),
    to what it is called now; ``REMOVED`` maps a setting that is gone to the value that stayed. Both are inherited.
    """

    RENAMED: ClassVar[dict[Any, str]] = {}
    REMOVED: ClassVar[dict[str, Any]] = {}

    @classmethod
    def current(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of a checkpoint or record in today's names, without removed ones that have the value that stayed."""
        renamed, removed = cls._inherited("RENAMED"), cls._inherited("REMOVED")
        kept = {key: value for key, value in values.items() if key not in removed or value != removed[key]}
        return {renamed.get(key, key): _renamed_value(renamed, key, value) for key, value in kept.items()}

    @classmethod
    def _inherited(cls, table: str) -> dict:
        merged = {}
        for base in reversed(cls.__mro__):
            merged |= vars(base).get(table, {})
        return merged

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The config that a checkpoint or record holds in plain form (lists for tuples)."""
        values = cls.current(values)
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise settings.InputError(f"settings unknown to {cls.__module__}: {', '.join(sorted(unknown))}")
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

    def override(self, pairs: Sequence[str]) -> Self:
        """A copy with ``key=value`` strings applied; values are read as Python literals of the field's type."""
        return replace(self, **self.parse(pairs))

    def parse(self, pairs: Sequence[str]) -> dict[str, Any]:
        """``key=value`` strings as setting -> value; InputError for an unknown setting or a value of another type."""
        renamed, annotations = self._inherited("RENAMED"), {f.name: f.type for f in fields(self)}
        changes = {}
        for pair in pairs:
            given, _, text = pair.partition("=")
            key = renamed.get(given, given)
            if key not in annotations:
                raise settings.InputError(f"{pair}: unknown setting; choose from {', '.join(annotations)}")
            value = _parse(pair, text, getattr(self, key), _may_be_none(annotations[key]))
            changes[key] = _renamed_value(renamed, given, value)
        return changes

    def plain(self) -> dict[str, Any]:
        """The settings as checkpoints and records hold them: tuples as lists."""
        return _plain(asdict(self))

    def expect(self, **conditions: tuple[bool, str]) -> None:
        """``expect(name=(holds, "what is expected"))``: InputError naming the first setting that does not hold."""
        for name, (holds, expected) in conditions.items():
            if not holds:
                raise settings.InputError(f"{name}={getattr(self, name)!r}: expected {expected}")


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How to train."""

    REMOVED = {"accumulate": 1, "per_epoch": False}
    FEWEST_EPOCHS: ClassVar[int] = 1

    seed: int = settings.SEED
    epochs: int = 30
    batch_size: int = 4  # over all processes together
    optimizer: str = "adam"  # adam | adamw
    lr: float = 1e-4
    weight_decay: float = 0.0
    schedule: str = "constant"  # constant | poly | cosine | plateau (on the monitored metric)
    warmup: int = 0  # steps of linear warm-up
    plateau_patience: int = 3
    plateau_factor: float = 0.5
    clip_norm: float = 0.0  # 0: no clipping
    patience: int = 0  # epochs without improvement before stopping; 0: never
    workers: int = 1  # data-loading processes
    amp: bool = True  # mixed precision, where the device has it
    compile: bool = False

    def __post_init__(self):
        self.expect(
            optimizer=(self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            schedule=(self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            epochs=(self.epochs >= self.FEWEST_EPOCHS, f"{self.FEWEST_EPOCHS} or more"),
            batch_size=(self.batch_size >= 1, "1 or more"),
            lr=(0 <= self.lr < float("inf"), "a number from 0"),
            weight_decay=(0 <= self.weight_decay < float("inf"), "a number from 0"),
            warmup=(
                self.warmup >= 0 and not (self.warmup and self.schedule == "plateau"),
                "0 or more steps, and none with schedule=plateau",
            ),
            plateau_patience=(self.plateau_patience >= 0, "0 or more epochs"),
            plateau_factor=(0 < self.plateau_factor < 1, "a factor between 0 and 1"),
            clip_norm=(0 <= self.clip_norm < float("inf"), "a norm above 0, or 0 for no clipping"),
            patience=(self.patience >= 0, "a number of epochs, or 0 for no early stop"),
            workers=(self.workers >= 0, "0 or more processes"),
        )


@dataclass(frozen=True)
class SystemConfig(TrainingConfig):
    """What the configs of all systems extend."""

    dataset: str = "mini"

    @property
    def weights_name(self) -> str:
        """Stem of the file that the weights of this config are kept in."""
        return self.dataset


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _may_be_none(annotation: Any) -> bool:
    return isinstance(annotation, types.UnionType) and type(None) in get_args(annotation)


def _renamed_value(renamed: dict, key: str, value: Any) -> Any:
    return renamed.get((key, value), value) if isinstance(value, str) else value


def _parse(pair: str, text: str, current: Any, may_be_none: bool) -> Any:
    if isinstance(current, str):
        return text
    if isinstance(current, tuple) and text != "None" and not text.startswith("("):
        return tuple(_literal_or_text(part) for part in text.split(",") if part)
    if isinstance(current, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
        if isinstance(current, float) and type(value) is int:
            value = float(value)
    except (ValueError, SyntaxError, OverflowError) as error:
        raise settings.InputError(f"{pair}: {text!r} is not a value like {current!r}") from error
    fits = may_be_none if value is None else current is None or type(value) is type(current)
    if not fits:
        raise settings.InputError(f"{pair}: expected a {type(current).__name__} like {current!r}")
    return value


def _literal_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

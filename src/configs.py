"""Configs as frozen dataclasses: read back from a checkpoint, and changed by ``key=value`` on the command line."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from src import settings


@dataclass(frozen=True)
class Config:
    """What every config can do."""

    REMOVED: ClassVar[dict[str, Any]] = {}  # settings that are gone -> the value of each that stayed

    @classmethod
    def known(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint or record holds, less the settings that are gone and were as all is now."""
        return {key: value for key, value in values.items() if key not in cls.REMOVED or value != cls.REMOVED[key]}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The config a checkpoint or record holds in plain form (lists for tuples)."""
        values = cls.known(values)
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise settings.InputError(f"settings unknown to {cls.__module__}: {', '.join(sorted(unknown))}")
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

    def override(self, pairs: Sequence[str]) -> Self:
        """A copy with ``key=value`` strings applied; values are read as Python literals of the field's type."""
        changes = {}
        for pair in pairs:
            key, _, text = pair.partition("=")
            if key not in {f.name for f in fields(self)}:
                names = ", ".join(f.name for f in fields(self))
                raise settings.InputError(f"{pair}: unknown setting; choose from {names}")
            changes[key] = _parse(pair, text, getattr(self, key))
        return replace(self, **changes)


def _parse(pair: str, text: str, current: Any) -> Any:
    if isinstance(current, str):
        return text
    if isinstance(current, tuple) and text != "None" and not text.startswith("("):
        return tuple(_literal_or_text(part) for part in text.split(",") if part)
    if isinstance(current, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise settings.InputError(f"{pair}: {text!r} is not a value like {current!r}") from error
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if current is not None and value is not None and type(value) is not type(current):
        raise settings.InputError(f"{pair}: expected a {type(current).__name__} like {current!r}")
    return value


def _literal_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

"""One table of ablations: what is trained, what is changed, and how it is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from src import settings, system

FRESH_SEED = 7  # of the images that road and defects are judged on
REMOVED = "removed"  # a variant that helped nowhere and is gone from the code: its record stays, and is not run again


@dataclass(frozen=True)
class Bench:
    """One table of ablations.

    ``factors``: factor -> variant -> settings changed ({} = the base), REMOVED, or a function config -> measured that
    trains something else. Beside settings, ``start`` holds the settings of an earlier training whose weights this one
    starts from, and ``weights`` a file in place of the bench's own. ``judge``: trained -> {"metrics": {name: value},
    "scoring": {factor: {variant: value of the first metric}}}. ``baseline``: scoring factor -> its variant in use.
    """

    system: ModuleType
    base: Any
    metrics: tuple[str, ...]
    factors: Mapping[str, Mapping[str, Any]]
    judge: Callable[[Any], dict]
    baseline: Mapping[str, str] = field(default_factory=dict)
    weights: Path | None = None
    train: Callable | None = None  # default: the system's

    @property
    def needs(self) -> Path:
        """The folder of the data set that the bench learns from."""
        return system.default_root(self.system, self.base.dataset)


def fresh_root(system: str) -> Path:
    """Where the images that a system is judged on are written."""
    return settings.DATA_DIR / "mini" / f"{system}_ablations"

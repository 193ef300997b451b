"""One table of ablations: what is trained, what is changed, and how it is evaluated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from src import settings, system
from src.config import SystemConfig

FRESH_SEED = 7  # of the images that road and defects are evaluated on
REMOVED = "removed"  # a variant that is gone from the code because it helped nowhere; its record stays


@dataclass(frozen=True)
class Bench:
    """One table of ablations.

    ``factors``: factor -> variant -> settings changed ({} = the base), REMOVED, or a function config -> measurement
    that trains something else. Beside settings, ``start`` holds the settings of an earlier training whose weights this
    one starts from, and ``weights`` a file in place of the bench's own. ``evaluate``: trained -> {"metrics": {name:
    value}, "scoring": {factor: {variant: value of the first metric}}}. ``baseline``: scoring factor -> its variant in
    use. ``labels``: how tables and figures call a factor or variant whose record has another name.
    """

    system: ModuleType
    base: SystemConfig
    metrics: tuple[str, ...]
    factors: Mapping[str, Mapping[str, Any]]
    evaluate: Callable[[system.Trained], dict]
    baseline: Mapping[str, str] = field(default_factory=dict)
    weights: Path | None = None
    train: Callable | None = None  # default: the system's
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder of the data set that the bench is trained on."""
        return system.default_root(self.system, self.base.dataset)

    def label(self, name: str) -> str:
        """A factor's or variant's name in tables and figures."""
        return self.labels.get(name, name)


def fresh_root(system_name: str) -> Path:
    """Where the new images that a system is evaluated on are written."""
    return settings.DATA_DIR / "mini" / f"{system_name}_ablations"

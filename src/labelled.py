"""Items in memory with the class of each: what a folder of class folders holds once it is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from src import settings


@dataclass(frozen=True)
class Labelled:
    """Images, plots or series with their classes.

    ``items`` (N,...); ``labels`` int64 (N,), indices into ``classes``, of which some may have no item here; ``names``
    (N,), such as ``apple/012.png``; ``known``: what a generator knows of each item, () where nobody does.
    """

    items: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    known: tuple[dict, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: torch.Tensor) -> "Labelled":
        """The items at int64 ``indices``, with the same classes."""
        names, known = (tuple(part[i] for i in indices) if part else () for part in (self.names, self.known))
        return Labelled(self.items[indices], self.labels[indices], self.classes, names, known)

    def of(self, classes: Sequence[str]) -> torch.Tensor:
        """Indices of the items of some classes: int64, ascending. InputError for a class that is not there."""
        missing = sorted(set(classes) - set(self.classes))
        if missing:
            raise settings.InputError(f"no class {', '.join(missing)}; there are {', '.join(self.classes)}")
        is_wanted = torch.tensor([name in classes for name in self.classes])
        return is_wanted[self.labels].nonzero()[:, 0]

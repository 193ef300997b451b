"""Sets drawn as index tensors: nine images of one class, one of another."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from src import settings
from src.labelled import Labelled
from src.sets.config import SET_SIZE


class Sets(NamedTuple):
    """``indices`` int64 (B,N) into the images; ``position`` int64 (B,) of the odd one, -1 where there is none."""

    indices: torch.Tensor
    position: torch.Tensor


class Sampler:
    """Draws sets from the ``labels`` int64 (M,) of images, on the labels' device; ``classes`` are their names.

    The images of a set are distinct; its class and the odd one's are drawn uniformly from the classes.
    """

    def __init__(self, labels: torch.Tensor, classes: Sequence[str]):
        present, counts = labels.unique(return_counts=True)
        if len(present) < 2:
            raise settings.InputError("sets need images of at least two classes")
        self.counts, self.fewest = counts, int(counts.min())
        self.smallest_class = classes[int(present[counts.argmin()])]
        starts = counts.cumsum(0) - counts
        columns = torch.arange(int(counts.max()), device=labels.device)
        places = (starts[:, None] + columns).clamp(max=len(labels) - 1)
        self.members = labels.argsort(stable=True)[places]  # (classes, most images); valid below counts

    def draw(self, count: int, generator: torch.Generator, size: int = SET_SIZE, odd: bool = True) -> Sets:
        """``count`` sets of ``size`` images, one of them odd (or, with ``odd=False``, none)."""
        if self.fewest < size:
            raise settings.InputError(f"{self.smallest_class} has {self.fewest} images: too few for sets of {size}")
        device = self.members.device
        anchor = torch.randint(len(self.counts), (count,), generator=generator, device=device)
        indices = self.members[anchor[:, None], distinct(self.counts[anchor], size, generator)]
        if not odd:
            return Sets(indices, torch.full((count,), -1, device=device))
        steps = torch.randint(1, len(self.counts), (count,), generator=generator, device=device)
        other = (anchor + steps) % len(self.counts)
        column = (torch.rand(count, generator=generator, device=device) * self.counts[other]).long()
        position = torch.randint(size, (count,), generator=generator, device=device)
        odd_image = self.members[other, column.clamp(max=self.counts[other] - 1)]  # float32 may round up
        return Sets(indices.scatter(1, position[:, None], odd_image[:, None]), position)

    def pool(self, classes: int, each: int, generator: torch.Generator) -> torch.Tensor:
        """``each`` distinct images of each of ``classes`` distinct classes: int64 (classes * each,)."""
        if self.fewest < each or len(self.counts) < classes:
            raise settings.InputError(
                f"a pool of {classes} classes x {each} images does not fit {len(self.counts)} classes, of which "
                f"{self.smallest_class} has {self.fewest} images"
            )
        device = self.members.device
        chosen = torch.randperm(len(self.counts), generator=generator, device=device)[:classes]
        return self.members[chosen[:, None], distinct(self.counts[chosen], each, generator)].flatten()


def distinct(below: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """``size`` different numbers 0 <= k < ``below`` (B,) a row, all such sets alike likely: int64 (B,size).

    Floyd's algorithm for all rows at once (Bentley and Floyd, Programming Pearls, 1987): its time does not grow with
    ``below``, as that of sorting random keys does. The order within a row is not random.
    """
    uniform = torch.rand(size, len(below), generator=generator, device=below.device)
    chosen = torch.full((size, len(below)), -1, device=below.device)
    for row, share in enumerate(uniform):
        last = below - size + row
        pick = (share * (last + 1)).long().minimum(last)  # float32 may round up
        chosen[row] = torch.where((chosen[:row] == pick).any(0), last, pick)
    return chosen.T


def fixed_sets(images: Labelled, count: int, seed: int, size: int = SET_SIZE, odd: bool = True) -> Sets:
    """The same sets on every machine, for validation and test."""
    return Sampler(images.labels, images.classes).draw(count, torch.Generator().manual_seed(seed), size, odd)


def check(sets: Sets, labels: torch.Tensor) -> dict[str, float]:
    """What a set must be, else ValueError; returns ``sets``, ``images`` used and the ``largest_share`` of a position.

    Exactly one image of another class than the rest, at the position named; no image twice; positions uniform
    (within five standard deviations).
    """
    members, (count, size) = labels[sets.indices], sets.indices.shape
    ordered = sets.indices.sort(1).values
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("an image occurs twice in a set")
    is_odd = members != members.mode(1).values[:, None]
    if (is_odd.sum(1) != 1).any() or (is_odd.int().argmax(1) != sets.position).any():
        raise ValueError("a set does not hold exactly one odd image at the position named")
    shares = torch.bincount(sets.position, minlength=size) / count
    if float((shares - 1 / size).abs().max()) > 5 * (1 / size * (1 - 1 / size) / count) ** 0.5:
        raise ValueError(f"the odd image's position is not uniform: {shares.tolist()}")
    return {"sets": count, "images": len(sets.indices.unique()), "largest_share": float(shares.max())}

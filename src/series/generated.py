"""Series straight from the generator, drawn by several processes where they are many."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np
import torch
from tqdm import tqdm

from src import settings
from src.labelled import Labelled
from src.series import chunks
from src.synthetic.time_series import CLASSES

FIRST_STREAMED = 1_000_000  # series from this number on are in no data set on disk
CHUNK = 100  # series that a process draws at a time
FEW = 1000  # series that are drawn in this process

MakeItem = Callable[[np.ndarray], np.ndarray]  # of the values (n,) of a series, as `envelope.of_series`


def epoch_numbers(count: int, epoch: int = 0) -> range:
    """Numbers of the ``count`` series of each class in an epoch from 0, none of which another epoch has."""
    first = FIRST_STREAMED + epoch * count
    return range(first, first + count)


def draw_series(
    make_item: MakeItem,
    numbers: range,
    classes: Sequence[str] = CLASSES,
    seed: int = settings.SEED,
    split: str = "train",
) -> Labelled:
    """The series of these numbers of each class, class after class, with what the generator knows of them."""
    with worker_map(len(numbers) * len(classes)) as run:
        return _Drawing(run, make_item, numbers, classes, seed, split).finish()


@contextmanager
def draw_epochs(
    make_item: MakeItem, count: int, classes: Sequence[str], seed: int, epochs: int
) -> Iterator[Callable[[int], Labelled]]:
    """Gives a function from an epoch to its series, ``count`` of each class.

    One pool of processes serves the whole training; it draws the next epoch while training goes on with this one.
    """
    drawings: dict[int, _Drawing] = {}
    with worker_map(count * len(classes)) as run:

        def start(epoch: int) -> None:
            if epoch < epochs and epoch not in drawings:
                drawings[epoch] = _Drawing(run, make_item, epoch_numbers(count, epoch), classes, seed, "train")

        def draw(epoch: int) -> Labelled:
            start(epoch)
            start(epoch + 1)
            return drawings.pop(epoch).finish()

        yield draw


@contextmanager
def worker_map(items: int) -> Iterator[Callable[[Callable, Iterable], Iterable]]:
    """``map`` in this process for few items; for more, one that starts at once in a process a core."""
    if items <= FEW:
        yield map
        return
    with get_context("spawn").Pool(initializer=chunks.ignore_interrupts) as pool:
        yield pool.imap


class _Drawing:
    """Series that are being drawn by ``run``, a map."""

    def __init__(
        self, run: Callable, make_item: MakeItem, numbers: range, classes: Sequence[str], seed: int, split: str
    ):
        self.numbers, self.classes = numbers, tuple(classes)
        parts = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
        self.tasks = list(product(self.classes, parts))
        self.results = run(partial(chunks.draw, make_item=make_item, split=split, seed=seed), self.tasks)

    def finish(self) -> Labelled:
        """Wait for the rest."""
        results = list(tqdm(self.results, "series", len(self.tasks), leave=False, disable=None))
        items = torch.from_numpy(np.concatenate([items for items, _ in results]))
        labels = torch.arange(len(self.classes)).repeat_interleave(len(self.numbers))
        names = tuple(f"{label}/{number}" for label, number in product(self.classes, self.numbers))
        return Labelled(items, labels, self.classes, names, tuple(row for _, rows in results for row in rows))

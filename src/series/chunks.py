"""What a worker process draws. Imports no torch, so that workers start fast."""

import signal
from collections.abc import Callable

import numpy as np

from src.synthetic.time_series import describe, generate


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def draw(
    task: tuple[str, range], make_item: Callable[[np.ndarray], np.ndarray], split: str, seed: int
) -> tuple[np.ndarray, list[dict]]:
    """Items (n,...) of the series of a class with these numbers, and what the generator knows of each."""
    label, numbers = task
    series = [generate(label, number, split, seed) for number in numbers]
    return np.stack([make_item(one.values) for one in series]), [describe(one) for one in series]

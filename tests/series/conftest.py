"""What the tests of the series system share: plenty of series, drawn once, and how a plot is opened."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.synthetic import time_series


def pixels(path: Path) -> np.ndarray:
    """An image file as uint8 (H,W,3)."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="session")
def plenty() -> dict[str, list[time_series.Series]]:
    """Class -> 120 series of the training split."""
    return {label: [time_series.generate(label, i, seed=3) for i in range(120)] for label in time_series.CLASSES}


@pytest.fixture(scope="session")
def one_each() -> list[time_series.Series]:
    """One series of each class, of every length."""
    return [time_series.generate(label, number, seed=3) for number, label in enumerate(time_series.CLASSES)]

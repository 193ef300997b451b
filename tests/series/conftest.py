"""What the tests of the series room share: plenty of series, drawn once, and how a plot is opened."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.series import generate


def pixels(path: Path) -> np.ndarray:
    """An image file as uint8 (H,W,3)."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="session")
def plenty() -> dict[str, list[generate.Series]]:
    """Class -> 120 series of the training split."""
    return {label: [generate.generate(label, i, seed=3) for i in range(120)] for label in generate.CLASSES}


@pytest.fixture(scope="session")
def one_each() -> list[generate.Series]:
    """One series of each class, of every length."""
    return [generate.generate(label, number, seed=3) for number, label in enumerate(generate.CLASSES)]

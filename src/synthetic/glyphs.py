"""Miniature CIFAR-100: 32 classes of drawn 32x32 images, in the form of class folders.

A class is a shape with a texture (``ring_striped``). Place, size, turn, colours, light, noise and the clutter behind
and in front of the glyph are drawn for every image in the same way, whatever its class: they say nothing about it.
"""

import math
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np

from src import settings
from src.synthetic.folders import fresh, run_tasks, save_png
from src.synthetic.paint import mix, rotate, soften, step, subpixels, to_uint8

VERSION = 1  # raise it whenever a pixel changes, so that old data sets are recognised
SPLITS = ("train", "test")
COUNTS = {"train": 100, "test": 25}  # images of a class
SIZE = 32  # pixels a side
RADIUS = (7.5, 12)  # pixels: the circle around a glyph
CONTRAST = 0.45  # least distance between the two inks and the ground, in RGB from 0 to 1
Y, X = subpixels(SIZE)  # pixels, drawn at twice the image's size


def _star(x, y):
    sector = 0.4 * math.pi
    angle, radius = abs(np.arctan2(y, x) / sector % 1 - 0.5) * sector, np.hypot(x, y)
    return 0.35 - radius * (0.35 * np.cos(angle) + 0.94 * np.sin(angle))


def _arrow(x, y):
    head = np.minimum(x + 0.05, 0.64 - 0.64 * x - 0.77 * abs(y))
    return np.maximum(head, np.minimum(0.26 - abs(y), 0.5 - abs(x + 0.45)))


# Distance to the outline, positive inside, of shapes that just fill a circle of radius 1
SHAPES = {
    "arrow": _arrow,
    "crescent": lambda x, y: np.minimum(0.97 - np.hypot(x, y), np.hypot(x - 0.45, y) - 0.72),
    "cross": lambda x, y: np.minimum(0.3 - np.minimum(abs(x), abs(y)), 0.97 - np.maximum(abs(x), abs(y))),
    "disc": lambda x, y: 0.9 - np.hypot(x, y),
    "ring": lambda x, y: 0.24 - abs(np.hypot(x, y) - 0.74),
    "square": lambda x, y: 0.78 - np.maximum(abs(x), abs(y)),
    "star": _star,
    "triangle": lambda x, y: 0.55 - np.maximum(x, 0.866 * abs(y) - 0.5 * x),
}
# Distance in periods to the border of the second ink, positive within it
TEXTURES = {
    "dotted": lambda x, y: 0.33 - np.hypot(x - np.rint(x), y - np.rint(y)),
    "halved": lambda x, y: x,
    "plain": lambda x, y: np.full_like(x, -9),
    "striped": lambda x, y: 0.25 - abs(x - np.rint(x)),
}
CLASSES = tuple(f"{shape}_{texture}" for shape, texture in product(SHAPES, TEXTURES))


def _cover(rng, shape: str, middle, radius: float, stretch: float) -> np.ndarray:
    """A shape (2S,2S) in a random direction, 0 outside to 1 inside; middle and radius in pixels."""
    (x, y), width = rotate(X - middle[0], Y - middle[1], rng.uniform(0, 2 * math.pi)), radius / stretch
    return step(SHAPES[shape](x / radius, y / width) * width)


def _pattern(rng, texture: str, middle, period: float, inks) -> np.ndarray:
    """A texture (3,2S,2S) in a random direction, in two inks; middle and period in pixels."""
    x, y = rotate(X - middle[0], Y - middle[1], rng.uniform(0, 2 * math.pi))
    return mix(*inks, step(TEXTURES[texture](x / period, y / period) * period))


def _palette(rng) -> np.ndarray:
    """Ground and two inks (3,3,1,1), any three colours that a person tells apart."""
    while True:
        colours = rng.uniform(0, 1, (3, 3, 1, 1))
        if min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > CONTRAST:
            return colours


def _cluttered(rng, picture, count: int, length: float) -> np.ndarray:
    """The picture (3,2S,2S) with lines, blobs and small shapes upon it."""
    for _ in range(count):
        shape = list(SHAPES)[rng.integers(len(SHAPES))]
        radius, stretch = (length, length) if rng.random() < 0.5 else rng.uniform((1.5, 1), (0.4 * length, 2))
        share = _cover(rng, shape, rng.uniform(0, SIZE, 2), radius, stretch) * rng.uniform(0.5, 1)
        picture = mix(picture, rng.uniform(0, 1, (3, 1, 1)), share)
    return picture


def _photograph(rng, picture) -> np.ndarray:
    """Light, lens and noise: a picture (3,2S,2S) in 0..1 becomes uint8 (S,S,3)."""
    right, down = rng.uniform(-0.02, 0.02, 2)
    picture = picture * (1 + right * (X - SIZE / 2) + down * (Y - SIZE / 2)) * rng.uniform(0.7, 1.1)
    picture = picture.reshape(3, SIZE, 2, SIZE, 2).mean((2, 4)).transpose(1, 2, 0)
    picture = soften(picture, rng.uniform(0, 0.6))
    contrast, grain = rng.uniform(0.6, 1), rng.normal(0, rng.uniform(0.01, 0.06), (3, SIZE, SIZE))
    return to_uint8(255 * (mix(0.5, picture, contrast) + grain.transpose(1, 2, 0)))


def render(name: str, number: int, split: str) -> np.ndarray:
    """Image `number` of a class and split, uint8 (32,32,3): the same for the same three arguments.

    Raises InputError for an unknown class or split.
    """
    if name not in CLASSES or split not in SPLITS:
        raise settings.InputError(f"no glyph {split}/{name}: splits are {SPLITS}, classes are {', '.join(CLASSES)}")
    rng = np.random.default_rng([CLASSES.index(name), SPLITS.index(split), number])
    (shape, texture), (ground, *inks) = name.split("_"), _palette(rng)
    faint_ink = np.clip(ground + rng.normal(0, 0.2, (3, 1, 1)), 0, 1)
    ground_texture = list(TEXTURES)[rng.integers(len(TEXTURES))]
    picture = _pattern(rng, ground_texture, rng.uniform(0, SIZE, 2), rng.uniform(3.6, 8), (ground, faint_ink))
    picture = _cluttered(rng, picture, rng.integers(3, 9), 13)
    radius = rng.uniform(*RADIUS)
    middle = rng.uniform(0.8 * radius, SIZE - 0.8 * radius, 2)
    glyph = _pattern(rng, texture, middle + rng.normal(0, 1, 2), rng.uniform(3.8, 5.5), inks)
    picture = mix(picture, glyph, _cover(rng, shape, middle, radius, rng.uniform(0.8, 1.25)))
    return _photograph(rng, _cluttered(rng, picture, rng.integers(0, 4), 8))


def _write(image: tuple[str, str, int], folder: Path) -> None:
    split, name, number = image
    save_png(render(name, number, split), folder / split / name / f"{number:03d}.png")


def write_dataset(root: Path, counts=COUNTS, workers: int | None = None) -> None:
    """Write root/{train,test}/<class>/NNN.png, counts[split] images of every class.

    For workers see `folders.run_tasks`. A data set of this version and counts is kept. Raises InputError as
    `folders.fresh` does.
    """
    with fresh(root, "glyphs", VERSION, counts=dict(counts)) as folder:
        if folder is None:
            return
        images = [(split, name, i) for split, name in product(SPLITS, CLASSES) for i in range(counts[split])]
        run_tasks(partial(_write, folder=folder), images, "glyphs", workers)

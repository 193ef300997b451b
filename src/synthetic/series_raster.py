"""Plots straight into pixels, without matplotlib: like its own, and fast enough to train on unlimited series."""

import math
from functools import lru_cache, partial
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.synthetic.series_plots import BLUE, DPI

POINT = DPI / 72  # pixels
WIDTH, HEIGHT = 790, 590  # pixels of a plot by matplotlib, to within three
TOP, BOTTOM, RIGHT = 10.0, HEIGHT - 56.17, WIDTH - 10.0  # borders of the axes in pixels, as a rule
RADIUS = 0.75 * POINT  # pixels: half the line's width
STEP = RADIUS / 3.5  # pixels: the width of a slice
# How far a disc in another slice reaches up: with 0.43 the ink is right to 3 % whatever the slope
REACH = [math.sqrt(RADIUS**2 - (abs(shift) + 0.43 * (shift != 0)) ** 2 * STEP**2) for shift in range(-3, 4)]
MARGIN = 1 / 22  # share of an axis before the first and after the last sample: 5 % of their distance


@lru_cache(4096)
def _text(text: str, points: float, upright: bool = False) -> Image.Image:
    """A label in matplotlib's font, black on white, as high as a digit or capital."""
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", points * POINT)
    image = Image.new("L", (math.ceil(font.getlength(text)), math.ceil(0.73 * points * POINT)), 255)
    ImageDraw.Draw(image).text((0, image.height), text, 0, font, anchor="ls")
    return image.transpose(Image.Transpose.ROTATE_90) if upright else image


def _ticks(low: float, high: float) -> tuple[np.ndarray, list[Image.Image]]:
    """Matplotlib's ticks and labels from low to high: at most nine steps of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (high - low) / 9
    power = 10.0 ** math.floor(math.log10(raw))
    factor = next(factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    step = power * factor
    ticks = step * np.arange(math.ceil(low / step), math.floor(high / step) + 1)
    decimals = max(0, (factor == 2.5) - math.floor(math.log10(1.001 * step)))
    form = f".{decimals}f" if 1e-4 < step < 1e6 else ".4g"
    return ticks, [_text(format(tick + 0.0, form).replace("-", "\N{MINUS SIGN}"), 10) for tick in ticks.tolist()]


def _shares(starts: np.ndarray, length: float, cells: int, size: int) -> np.ndarray:
    """How much of each of the cells that a size is cut into lies in intervals of one length: float (cells,)."""
    edges, scale = np.arange(cells)[:, None], cells / size
    return (((starts + length) * scale - edges).clip(0, 1) - (starts * scale - edges).clip(0, 1)).sum(1)


class _Axes:
    """Where matplotlib puts axes, ticks and labels for values (n,), in pixels of a plot counted from its top left."""

    def __init__(self, values: np.ndarray):
        low, high, last = float(values.min()), float(values.max()), len(values) - 1
        pad = (high - low) / 20
        times, self.names = _ticks(-last / 20, 1.05 * last)
        levels, self.numbers = _ticks(low - pad, high + pad)
        self.left = 42.3 + min(max(number.width for number in self.numbers), WIDTH / 2)
        # An axis gives way to its last label where that would stick out
        places = MARGIN + (1 - 2 * MARGIN) * times / last
        self.right = min(RIGHT, self.left + (RIGHT - self.names[-1].width / 2 - self.left) / places[-1])
        self.columns = self.left + (self.right - self.left) * places
        heights = (levels - low + pad) / (high - low + 2 * pad)
        self.top = max(TOP, BOTTOM - (BOTTOM - TOP - self.numbers[-1].height / 2) / heights[-1])
        self.rows = BOTTOM - (BOTTOM - self.top) * heights
        self.y_of = partial(np.interp, xp=(low - pad, high + pad), fp=(BOTTOM, self.top))

    def lines(self, size: tuple[int, int]) -> np.ndarray:
        """Ink of grid, axes and ticks, float32 (h,w) in 0..255, each snapped to whole pixels of a plot."""
        left, right, top, bottom = np.rint((self.left, self.right, self.top, BOTTOM))
        across = partial(_shares, cells=size[1], size=WIDTH)
        down = partial(_shares, cells=size[0], size=HEIGHT)
        columns, axis = across(np.rint(self.columns), 1), across(left, right - left)
        rows = down(np.rint(self.rows), 1)
        vertical = [down(top, bottom - top), rows, down(bottom, 1), down(bottom, 5)]
        level = [24 * columns + 255 * across(left, 1), 24 * axis + 255 * across(left - 5, 5), 255 * axis, 255 * columns]
        return np.minimum(np.array(vertical, np.float32).T @ np.array(level, np.float32), 255)

    def letters(self) -> Image.Image:
        """The labels, black on white."""
        image = Image.new("L", (WIDTH, HEIGHT), 255)
        labels = [(name, x, BOTTOM + 15.5) for name, x in zip(self.names, self.columns, strict=True)]
        labels += [(n, self.left - 9.7 - n.width / 2, y) for n, y in zip(self.numbers, self.rows, strict=True)]
        labels.append((_text("Time", 12), (self.left + self.right) / 2, BOTTOM + 36))
        labels.append((_text("Value", 12, True), 17, (self.top + BOTTOM) / 2))
        for label, x, y in labels:
            image.paste(label, (round(x - label.width / 2), round(y - label.height / 2)))
        return image

    def ground(self, size: tuple[int, int]) -> np.ndarray:
        """Everything but the line, float32 (h,w) in 0..255."""
        (h, w), ink, letters = size, self.lines(size), self.letters()
        rows, columns = int(BOTTOM * h / HEIGHT), math.ceil(self.left * w / WIDTH)
        corner = columns * WIDTH / w, rows * HEIGHT / h  # only the strips below and left of it hold letters
        ink[:rows, :columns] += 255 - np.asarray(letters.resize((columns, rows), Image.Resampling.BOX, (0, 0, *corner)))
        below = letters.resize((w, h - rows), Image.Resampling.BOX, (0, corner[1], WIDTH, HEIGHT))
        ink[rows:] += 255 - np.asarray(below)
        return 255 - np.minimum(ink, 255)


def stroke(x: np.ndarray, y: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """A line of 1.5 points through rising x and y, both float (n,) in pixels of a plot, in slices STEP wide.

    A stroke is the union of discs along its line; where the line is the graph of a function, each vertical slice of
    the stroke is one interval. Returns the number of the first slice (x / STEP), and the greatest and least y of each.
    """
    slices = (x / STEP).astype(int)  # the number of each sample's slice
    first, count, far = slices[0], slices[-1] - slices[0] + 1, len(REACH) // 2
    starts = np.flatnonzero(np.diff(slices, prepend=-1))
    crossings = np.interp(np.arange(first + 1, first + count) * STEP, x, y)  # of the borders between slices
    line = np.full((2, count + 4 * far), -np.inf)  # greatest y and greatest -y of the line itself
    inner = line[:, 2 * far : 2 * far + count]
    for row, sign in zip(inner, (1, -1), strict=True):
        row[slices[starts] - first] = np.maximum.reduceat(sign * y, starts)
        np.maximum(row[1:], sign * crossings, out=row[1:])
        np.maximum(row[:-1], sign * crossings, out=row[:-1])
    count += 2 * far
    reached = line[:, :count] + REACH[0]
    for shift, reach in enumerate(REACH[1:], 1):
        np.maximum(reached, line[:, shift : shift + count] + reach, out=reached)
    return first - far, reached[0], -reached[1]


def _coverage(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The share of every pixel (h,w) under the `stroke` through (x, y), of which each slice is counted exactly."""
    (h, w), row = size, size[0] / HEIGHT
    first, bottom, top = stroke(x, y)
    owner = ((np.arange(math.ceil(WIDTH / STEP)) + 0.5) * STEP * w / WIDTH).astype(int)  # the pixel of each slice
    shares, owner = 1 / np.bincount(owner), owner[first : first + len(top)]
    # clip(bottom - r, 0, 1) - clip(top - r, 0, 1), over rows r, is scattered by its steps and summed up from below
    ends = np.clip(np.concatenate([bottom, top]) * row, 0, h)
    full_rows, weight = ends.astype(int), np.concatenate([shares[owner], -shares[owner]])
    index, part = (full_rows + 1) * w + np.tile(owner, 2), weight * (ends - full_rows)
    steps = np.bincount(np.append(index, index - w), np.append(part, weight - part), (h + 2) * w).astype(np.float32)
    return steps.reshape(h + 2, w)[:0:-1].cumsum(0)[:0:-1]


def picture(values: np.ndarray, size: tuple[int, int] = (120, 160), axes: bool = True) -> np.ndarray:
    """The plot of a series, values (n,), as uint8 (3,H,W) of ``size`` = (H,W), without matplotlib.

    What `series_plots.draw` and area averaging to ``size`` give, but for the grain of small letters and, where ticks
    are more than 1e6 or less than 1e-4 apart, the way numbers are written. ``axes=False``: the line alone, on white.
    """
    frame = _Axes(values)
    margin = (frame.right - frame.left) * MARGIN
    x = np.linspace(frame.left + margin, frame.right - margin, len(values))
    cover = _coverage(x, frame.y_of(values), size)
    ground, pixels = frame.ground(size) if axes else np.float32(255), np.empty((3, *size), np.uint8)
    for channel, value in zip(pixels, BLUE, strict=True):
        channel[:] = ground + cover * (np.float32(value) - ground) + np.float32(0.5)
    return pixels

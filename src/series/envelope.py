"""Line envelopes: the top and bottom edge of a plot's line in each column, read off pixels or computed from numbers.

An envelope is 1 where the line is highest, 0 where it is lowest, whatever the axes; it begins and ends with the line.
"""

import numpy as np

from src.images import DataError
from src.synthetic.series_plots import BLUE
from src.synthetic.series_raster import stroke

WIDTH = 640  # columns; the line of a plot is about 654 pixels wide
SPAN, RISE = 652, 476  # pixels between the first and last, lowest and highest sample of a plot
# How far the edge of a pixel's ink lies from the second towards the outermost of its three slices: with 0.4, mean
# thickness is that of matplotlib's pixels to 2 %, for smooth and dense lines alike
RAGGED = 0.4
COVERED = 0.416  # least share of a pixel under the line that counts as ink
FEWEST = 50  # columns of a plot that hold a line
PURE = 0.85  # least cover of the line's own blue
DOTS, EDGE, RING = 5, 10, 4  # pixels: stray ones; at the axes, for ticks; around them, where ticks do not end


def of_plot(image: np.ndarray, place: str) -> np.ndarray:
    """The envelope float16 (2,WIDTH) of a plot uint8 (H,W,3): top and bottom edge of the line, from left to right.

    Columns without ink, as in a dashed line, are interpolated. Raises DataError naming the place where there is no
    line of the plots' blue between axes.
    """
    ink = _cover(image, place) > COVERED
    columns = np.flatnonzero(ink.any(0))
    top = len(ink) - ink[:, columns].argmax(0)
    bottom = ink[::-1, columns].argmax(0)
    middles = columns[0] + _columns(columns[-1] - columns[0] + 1)
    return _scaled(np.interp(middles, columns, top), np.interp(middles, columns, bottom))


def of_series(values: np.ndarray) -> np.ndarray:
    """The envelope float16 (2,WIDTH) that `of_plot` reads off the plot of a series (n,), straight from the numbers."""
    y = (values - values.min()) * (RISE / (values.max() - values.min()))
    _, top, bottom = stroke(np.linspace(1, 1 + SPAN, len(values)), y)
    middles = _columns(len(top)).clip(1, len(top) - 2)
    around = np.stack([middles - 1, middles, middles + 1])  # nearly a pixel
    lowest, bottom, _ = np.sort(bottom[around], 0)
    _, top, highest = np.sort(top[around], 0)
    return _scaled(np.rint(top + RAGGED * (highest - top)), np.rint(bottom + RAGGED * (lowest - bottom)))


def line_alone(image: np.ndarray, place: str) -> np.ndarray:
    """A plot uint8 (H,W,3) without axes, grid and labels. Raises DataError naming the place where it has no line."""
    return np.uint8(255.5 - _cover(image, place)[..., None] * (255 - np.array(BLUE)))


def _cover(image: np.ndarray, place: str) -> np.ndarray:
    """How much of each pixel the line covers: float32 (H,W) in 0..1, of a plot uint8 (H,W,3).

    The line is the only colour, above and right of the axes: the darkest column at the left and row in the lower half.
    Raises DataError where there are no such axes or line, or more than that.
    """
    height, width, _ = image.shape
    red, green, blue = (image[..., channel] for channel in range(3))
    dark = (red < 90) & (green < 90) & (blue < 90)  # image.max(2) would take most of the time to read a plot
    left = dark[:, : width // 3 + 1].sum(0).argmax()
    bottom = height // 2 + dark[height // 2 :].sum(1).argmax()
    cover = ((blue - red.astype(np.float32)) / (BLUE[2] - BLUE[0])).clip(0, 1)
    line = np.zeros_like(cover)
    if 2 * dark[:, left].sum() > height and 2 * dark[bottom].sum() > width:  # there are axes
        top, right = dark[:, left].argmax(), width - dark[bottom, ::-1].argmax()
        line[top:bottom, left + 1 : right] = cover[top:bottom, left + 1 : right]
    if (line > COVERED).any(0).sum() < FEWEST:
        raise DataError(
            f"{place} has no blue line (#1f77b4) on light ground above and right of dark axes: draw it as the plots of "
            "this data set are, or give the numbers themselves as CSV"
        )
    ring = cover[max(top - RING, 0) : bottom + RING, max(left - RING, 0) : right + RING]
    shown = {
        "another colour": _is_other_colour(image).sum() > DOTS,
        "a line beyond the axes": (ring > PURE).sum() - (line > PURE).sum() > DOTS,
        "text, a legend or an arrow": dark[top + EDGE : bottom - EDGE, left + EDGE : right - EDGE].sum() > DOTS,
        "a second line or a filled area": _is_more_than_a_line(line),
    }
    if any(shown.values()):
        seen = ", ".join(name for name, is_seen in shown.items() if is_seen)
        raise DataError(f"{place} shows {seen}: draw the line alone, or give the numbers themselves as CSV")
    return line


def _is_other_colour(image: np.ndarray) -> np.ndarray:
    """Pixels (H,W) that are neither grey nor a mix of grey and the line's blue."""
    red, green, blue = (image[..., channel].astype(np.int16) for channel in range(3))
    expected = (blue - red) * np.float32((BLUE[1] - BLUE[0]) / (BLUE[2] - BLUE[0]))
    return (abs(green - red - expected) > 40) | (red - blue > 60)


def _is_more_than_a_line(line: np.ndarray) -> bool:
    """Whether columns of cover (H,W) hold two strokes, an edge of thick ink lies level, or areas are pale.

    Of 50 of the real plots, as PNG and as JPEG, at most 12 % of columns, 4 % and 3.8 % of the axes' area do.
    """
    from scipy.ndimage import maximum_filter, minimum_filter

    line = line[np.ix_(line.any(1), line.any(0))]
    pale = minimum_filter((line > 0.1) & (line < PURE) & ~maximum_filter(line > PURE, 9), 3)
    ink = (line > COVERED)[:, (line > COVERED).any(0)]
    top, bottom = ink.argmax(0), len(ink) - ink[::-1].argmax(0)
    is_parted = bottom - top - ink.sum(0) > 4
    level = max(np.bincount(edge[bottom - top > EDGE], minlength=1).max() for edge in (top, bottom))
    return is_parted.mean() > 0.2 or level > 0.2 * len(top) or pale.mean() > 0.05


def _columns(count: int) -> np.ndarray:
    """Which of ``count`` columns lies at the middle of each column of an envelope: int64 (WIDTH,)."""
    return ((np.arange(WIDTH) + 0.5) * count / WIDTH).astype(int)


def _scaled(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Edges (WIDTH,) in the unit and direction of y -> float16 (2,WIDTH) from 0 to 1."""
    lowest = bottom.min()
    return np.float16((np.stack([top, bottom]) - lowest) / (top.max() - lowest))

"""The rasteriser: like matplotlib to the pixel in its axes, exact in the ink of its line."""

import numpy as np
import pytest
from matplotlib.ticker import MaxNLocator
from PIL import Image

from src.synthetic import series_plots, series_raster
from tests.series.conftest import pixels


def line(plot: np.ndarray) -> np.ndarray:
    """How blue each pixel of uint8 (3,H,W) is, 0 to 1."""
    return (plot[2].astype(float) - plot[0]) / (series_plots.BLUE[2] - series_plots.BLUE[0])


def test_the_rasteriser_is_like_matplotlib(tmp_path, one_each):
    for s in one_each:
        plot = series_raster.picture(s.values, (120, 160))
        assert plot.dtype == np.uint8 and plot.shape == (3, 120, 160)
        series_plots.draw(s.values, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as image:
            small = np.array(image.convert("RGB").resize((160, 120), Image.Resampling.BOX)).transpose(2, 0, 1)
        assert abs(plot.astype(float) - small).mean() < 0.015 * 255, s.family
        assert np.corrcoef(plot.ravel(), small.ravel())[0, 1] > 0.97, s.family
        assert line(plot).sum() == pytest.approx(line(small).sum(), rel=0.08), s.family


def test_at_full_size_axes_and_grid_are_where_matplotlib_puts_them(tmp_path, one_each):
    for s in one_each:
        series_plots.draw(s.values, tmp_path / "plot.png")
        drawn = pixels(tmp_path / "plot.png")
        plot = series_raster.picture(s.values, (series_raster.HEIGHT, series_raster.WIDTH)).transpose(1, 2, 0)
        for axis in (0, 1):
            dark = [(image.max(2) < 60).sum(axis) for image in (drawn, plot)]
            assert dark[0].argmax() == pytest.approx(dark[1].argmax(), abs=1)
            assert dark[0].max() == pytest.approx(dark[1].max(), abs=3)
            light = [abs(image.astype(int) - 231).max(2) < 3 for image in (drawn, plot)]
            grids = [np.flatnonzero(grid.sum(axis) > 100) for grid in light]
            assert len(grids[0]) >= 3
            np.testing.assert_allclose(*grids, atol=2)  # where a last label sticks out, matplotlib's is cut narrower


@pytest.mark.parametrize("size", [(120, 160), (96, 128), (224, 224), (590, 790)])
def test_a_flat_line_has_the_width_of_the_pen(size):
    x, y = np.array([100.0, 600.0]), np.array([200.3, 200.3])
    cover = series_raster._coverage(x, y, size)
    inner = cover[:, size[1] * 2 // 8 : size[1] * 5 // 8].sum(0)
    np.testing.assert_allclose(inner, 1.5 * series_raster.POINT * size[0] / series_raster.HEIGHT, rtol=0.02)


@pytest.mark.parametrize("slope", [0.25, 0.5, 1, 2, 3, 5, 40])
def test_a_slope_covers_its_length_times_the_width_of_the_pen(slope):
    x = np.array([80.0, 80 + min(680, 400 / slope)])
    y = 500 - slope * (x - 80)
    ink = series_raster._coverage(x, y, (series_raster.HEIGHT, series_raster.WIDTH)).sum()
    ends = np.pi * (0.75 * series_raster.POINT) ** 2
    assert ink == pytest.approx(np.hypot(*np.diff([x, y]))[0] * 1.5 * series_raster.POINT + ends, rel=0.035)


def test_coverage_of_a_zigzag_matches_brute_force():
    rng = np.random.default_rng(0)
    x, y = np.linspace(60, 760, 40), rng.uniform(30, 520, 40)
    cover = series_raster._coverage(x, y, (59, 79))
    fine = np.linspace(0, len(x) - 1, 40_000)
    grid = np.zeros((2360, 3160), bool)  # four cells a pixel of the plot: the line, then the disc around it
    rows, columns = (np.interp(fine, np.arange(len(x)), part) * 4 for part in (y, x))
    disc = np.argwhere(np.hypot(*np.mgrid[-5:6, -5:6]) <= 3 * series_raster.POINT) - 5
    for down, right in disc:
        grid[(rows + down).astype(int), (columns + right).astype(int)] = True
    np.testing.assert_allclose(cover, grid.reshape(59, 40, 79, 40).mean((1, 3)), atol=0.06)


def test_one_spike_among_thousands_of_samples_is_seen():
    values = np.zeros(10_000)
    values[[0, 4321]] = -1, 1
    plot = line(series_raster.picture(values))[7:50]
    assert plot.min(0).max() > 0.25
    spans = np.flatnonzero(line(series_raster.picture(values)).max(0) > 0.25)[[0, -1]]
    assert plot.min(0).argmax() == pytest.approx(spans[0] + 0.4321 * (spans[1] - spans[0]), abs=1)


def test_without_axes_there_is_only_the_line(one_each):
    bare = series_raster.picture(one_each[0].values, axes=False).astype(float)
    cover = line(bare)
    for channel, value in zip(bare, series_plots.BLUE, strict=True):
        np.testing.assert_allclose(channel, 255 - cover * (255 - value), atol=1.5)
    assert bare[:, :, 0].min() == bare[:, -1].min() == 255


@pytest.mark.parametrize("low, high", [(-2.46, 3.1), (-3, 74.4), (-99.9, 2098), (-13.2, 11.7), (0.001, 0.0047)])
def test_ticks_are_those_of_matplotlib(low, high):
    expected = MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ticks, labels = series_raster._ticks(low, high)
    np.testing.assert_allclose(ticks, expected[(expected >= low) & (expected <= high)], atol=1e-12)
    assert len(labels) == len(ticks)


@pytest.mark.parametrize("values", [[0, 1], [1e30, -1e30, 0], [1e9, 1e9 + 0.1], [0, 1e-30, 0], [5, 4] * 20_000])
def test_odd_series_give_plots(values):
    plot = series_raster.picture(np.array(values, float))
    assert line(plot).sum() > 20 and (plot[:, 50, 100:140] > 0).all()

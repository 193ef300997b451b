"""Line envelopes: the line's edges column by column, the same from a plot and straight from the numbers."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from src.images import DataError
from src.series import envelope
from src.synthetic import series_plots, series_raster
from tests.series.conftest import pixels

FEW = np.array([50, 99, 300, 499, 2000, 10_000])


def plot_of(values: np.ndarray, folder) -> np.ndarray:
    """The plot by matplotlib, uint8 (H,W,3)."""
    series_plots.draw(values, folder / "plot.png")
    return pixels(folder / "plot.png")


def thickness(edges: np.ndarray) -> float:
    return float((edges[0].astype(float) - edges[1]).mean())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, one_each) -> list[tuple[np.ndarray, np.ndarray]]:
    """Envelopes from the plot and from the numbers, float64: one of each class, and white noise of FEW lengths."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("plots")
    series = [s.values for s in one_each] + [rng.standard_normal(n) for n in FEW]
    both = [(envelope.of_plot(plot_of(values, folder), "plot"), envelope.of_series(values)) for values in series]
    return [(drawn.astype(float), computed.astype(float)) for drawn, computed in both]


def test_form(pairs):
    for edges in (edges for pair in pairs for edges in pair):
        assert edges.shape == (2, envelope.WIDTH) and np.isfinite(edges).all()
        assert (edges[0] >= edges[1]).all() and edges.min() == 0 and edges.max() == 1
    assert envelope.of_series(np.arange(9.0)).dtype == np.float16


def test_plots_and_numbers_give_the_same(pairs):
    for drawn, computed in pairs:
        assert abs(drawn - computed).mean() < 0.035
        assert np.corrcoef(drawn.ravel(), computed.ravel())[0, 1] > 0.95
    assert np.mean([abs(drawn - computed).mean() for drawn, computed in pairs]) < 0.015


def test_lines_are_as_thick(pairs):
    ratios = np.array([thickness(computed) / thickness(drawn) for drawn, computed in pairs])
    assert abs(ratios.mean() - 1) < 0.02 and abs(ratios - 1).max() < 0.08


def test_up_is_up_and_time_runs_right():
    values = np.r_[np.zeros(300), np.linspace(0, 1, 300)]
    upper, lower = envelope.of_series(values).astype(float)
    assert (lower[:310] == 0).all() and (upper[:310] < 0.01).all()
    expected = np.interp(np.linspace(0, 1, envelope.WIDTH), np.linspace(0, 1, 600), values)
    np.testing.assert_allclose((upper + lower) / 2, expected, atol=0.01)


def test_one_spike_among_thousands_of_samples_is_seen():
    values = np.zeros(10_000)
    values[4321] = 1
    upper = envelope.of_series(values)[0]
    assert upper.argmax() == pytest.approx(0.4321 * envelope.WIDTH, abs=1.5)
    assert (upper > 0.5).sum() in (2, 3, 4)


def test_the_scale_does_not_matter(one_each):
    values = one_each[3].values
    for factor, shift in ((1e30, 0), (1e-9, 1e-8), (5, -7)):
        scaled = envelope.of_series(factor * values + shift)
        np.testing.assert_allclose(scaled.astype(float), envelope.of_series(values).astype(float), atol=0.003)


def test_sixteen_colours_are_enough(tmp_path, one_each):
    for s in one_each[:4]:
        plot = plot_of(s.values, tmp_path)
        reduced = np.array(Image.fromarray(plot).quantize(16).convert("RGB"))
        first, second = (envelope.of_plot(image, "plot").astype(float) for image in (plot, reduced))
        assert abs(first - second).mean() < 0.004


def test_labels_grid_and_axes_are_left_out(tmp_path, one_each):
    image = plot_of(one_each[5].values, tmp_path)
    alone = envelope.line_alone(image, "plot")
    blue = image.astype(int)[..., 2] - image[..., 0]
    assert (alone[blue == 0] == 255).all() and (alone[blue == 149] == series_plots.BLUE).all()


def test_gaps_are_bridged():
    values = np.sin(np.linspace(0, 9, 200))
    image = series_raster.picture(values, (590, 790)).transpose(1, 2, 0).copy()
    unbroken = envelope.of_plot(image, "plot").astype(float)
    image[:500, 400:420] = 255
    np.testing.assert_allclose(envelope.of_plot(image, "plot").astype(float), unbroken, atol=0.05)


@pytest.mark.parametrize("shade", [(255, 255, 255), (0, 0, 0), (31, 119, 180)])
@pytest.mark.parametrize("size", [(590, 790), (1, 1), (40, 30)])
def test_what_is_no_plot_is_refused(shade, size):
    if shade == series_plots.BLUE and size == (590, 790):
        shade = (180, 119, 31)
    with pytest.raises(DataError, match="b/7.png has no blue line .* CSV"):
        envelope.of_plot(np.full((*size, 3), shade, np.uint8), "b/7.png")


def test_a_plot_without_a_line_is_refused(tmp_path, one_each):
    image = plot_of(one_each[5].values, tmp_path)
    image[np.ptp(image, axis=2) > 0] = 255
    with pytest.raises(DataError, match="empty.png has no blue line"):
        envelope.line_alone(image, "empty.png")


# ------------------------------------------------------------------------------------------ decorated plots
STEP = np.random.default_rng(3).standard_normal(300) + 6 * (np.arange(300) > 160)
BLUE = "#1f77b4"
DECORATIONS = {  # what is drawn beside the line -> what is said of it; None: the answer is the plain plot's
    "a black title": (lambda axes: axes.set_title("A"), None),
    "a blue title": (lambda axes: axes.set_title("Sensor A", color=BLUE, fontsize=16), None),
    "all borders": (lambda axes: axes.spines[:].set_visible(True), None),
    "a legend": (lambda axes: axes.legend(["A"], loc="lower right"), "text, a legend or an arrow"),
    "an arrow": (lambda axes: axes.annotate("", (160, 6), (50, 8), arrowprops={"arrowstyle": "->"}), "an arrow"),
    "a second line": (lambda axes: axes.plot(STEP + 12, color=BLUE), "a second line"),
    "a crossing line": (lambda axes: axes.plot(STEP[::-1], color=BLUE), "a second line"),
    "a level": (lambda axes: axes.axhline(3, color=BLUE), "a second line"),
    "an orange line": (lambda axes: axes.plot(STEP + 1, color="C1"), "another colour"),
    "a red mark": (lambda axes: axes.plot([160], [6], "ro"), "another colour"),
    "a pale area": (lambda axes: axes.fill_between(range(300), STEP, -3, color=BLUE, alpha=0.3), "a filled area"),
    "a full area": (lambda axes: axes.fill_between(range(300), STEP, -3, color=BLUE), "a filled area"),
    "no axes": (lambda axes: axes.axis("off"), "no blue line .* of dark axes"),
    "an axis in the middle": (lambda axes: axes.spines["bottom"].set_position(("data", 3)), "no blue line"),
    "a low axis": (lambda axes: axes.spines["bottom"].set_position(("data", -1)), "a line beyond the axes"),
}


def decorated(decorate) -> np.ndarray:
    """The plot of STEP as `series_plots.draw` has it, with more drawn into it: uint8 (H,W,3)."""
    figure = Figure(figsize=(8, 6), dpi=series_plots.DPI)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    axes.plot(STEP, color=BLUE, linewidth=1.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    decorate(axes)
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@pytest.mark.parametrize("name", DECORATIONS)
def test_what_is_drawn_beside_the_line_changes_nothing_or_is_refused(name):
    decorate, message = DECORATIONS[name]
    plot = decorated(decorate)
    if message:
        with pytest.raises(DataError, match=f"a.png (shows|has) .*{message}"):
            envelope.of_plot(plot, "a.png")
    else:
        plain = envelope.of_plot(decorated(lambda axes: None), "a.png").astype(float)
        assert abs(envelope.of_plot(plot, "a.png").astype(float) - plain).mean() < 0.01


def test_a_jpeg_of_a_plot_reads_as_its_png(tmp_path):
    plot = decorated(lambda axes: None)
    Image.fromarray(plot).save(tmp_path / "a.jpg", quality=75)
    first, second = (envelope.of_plot(image, "a").astype(float) for image in (plot, pixels(tmp_path / "a.jpg")))
    assert abs(first - second).mean() < 0.02

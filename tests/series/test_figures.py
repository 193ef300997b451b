"""Figures show what they say: the right plots under the right titles, the worst first, and files on disk."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from src import series, settings
from src.series import evaluation, figures
from src.synthetic.time_series import CLASSES
from tests.series.systems import TINY, Told, labelled, on_the_cpu, pictures, traces  # noqa: F401

ABC = ("up_trend", "flat", "point_anomaly")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def shown(axis) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())


def visible(figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible()]


def test_a_picture_is_shown_as_it_is_and_a_trace_between_its_edges():
    _, (left, right) = plt.subplots(1, 2)
    picture, trace = pictures(1)[0], traces(1)[0]
    figures.show(left, picture)
    figures.show(right, trace)
    assert np.array_equal(shown(left), picture.permute(1, 2, 0).numpy())
    (outline,) = [path.vertices for path in right.collections[0].get_paths()]
    at = np.isclose(outline[:, 0], 100.5 / 640)
    assert {round(float(y), 3) for y in outline[at, 1]} == {round(float(y), 3) for y in trace[:, 100]}


def test_the_wall_has_a_row_for_each_class_that_there_is():
    items = pictures(7)
    figure = figures.wall(labelled(items, [0, 2, 0, 2, 2, 2, 0], ABC), each=3)
    assert len(figure.axes) == 6 and [axis.get_ylabel() for axis in figure.axes[::3]] == ["up\ntrend", "point\nanom."]
    expected = [0, 2, 6, 1, 3, 4]
    for axis, index in zip(figure.axes, expected, strict=True):
        assert np.array_equal(shown(axis), items[index].permute(1, 2, 0).numpy())


def test_a_class_with_few_plots_leaves_places_empty():
    figure = figures.wall(labelled(traces(4), [0, 0, 0, 1], ABC), each=3)
    assert len(visible(figure)) == 4


def test_confusion_counts_and_shares():
    axis = figures.confusion([[3, 1, 0], [0, 0, 0], [2, 0, 8]], ABC).axes[0]
    cells = {tuple(map(int, text.get_position()))[::-1]: int(text.get_text()) for text in axis.texts}
    assert cells == {(0, 0): 3, (0, 1): 1, (2, 0): 2, (2, 2): 8}
    assert np.allclose(shown(axis), [[0.75, 0.25, 0], [0, 0, 0], [0.2, 0, 0.8]])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["up trend", "flat", "point anom."]
    assert axis.get_ylabel() == "true" and axis.get_xlabel() == "named"


def test_reliability_is_drawn_against_the_diagonal():
    bins = {"confidence": [0.5, 0.9], "accuracy": [0.4, 0.95], "count": [10, 30]}
    left, right = figures.reliability({"folds": bins}).axes
    honest, line = left.lines
    assert list(honest.get_xdata()) == list(honest.get_ydata()) == [0, 1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.5, 0.9], [0.4, 0.95])
    assert list(right.lines[0].get_ydata()) == [10, 30] and line.get_label() == "folds"


PROBABILITIES = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.9, 0.08, 0.02], [0.1, 0.2, 0.7]])


@pytest.mark.parametrize("count", [1, 2, 12])
def test_mistakes_begin_with_the_worst(count):
    """Plots 1, 2 and 3 are named wrongly, with 0.1, 0.2 and 0.02 on the truth."""
    items = pictures(5)
    axes = visible(figures.mistakes(labelled(items, [0, 1, 0, 2, 2], ABC), PROBABILITIES, count))
    assert len(axes) == min(count, 3)
    for axis, index in zip(axes, [3, 1, 2], strict=False):
        assert np.array_equal(shown(axis), items[index].permute(1, 2, 0).numpy())
    assert axes[0].get_title() == "point anom., named\nup trend (90 %)"


def test_looks_show_plots_over_their_maps():
    items, maps = pictures(4), torch.rand(4, 40)
    figure = figures.looks(Told(maps=maps), items, list("abcd"), [[(0.25, 0.5)], [], [(0.1, 0.1), (0.9, 0.9)], []])
    axes = np.reshape(figure.axes, (4, 3))
    assert len(visible(figure)) == 8
    for index in range(4):
        above, below = axes[2 * (index // 3), index % 3], axes[2 * (index // 3) + 1, index % 3]
        assert above.get_title() == "abcd"[index] and np.allclose(shown(below), maps[index][None])
        assert np.array_equal(shown(above), items[index].permute(1, 2, 0).numpy())
    spans = [[patch.get_x() for patch in axis.patches] for axis in axes[0]]
    assert spans == [[0.25], [], [0.1, 0.9]] and axes[0, 0].patches[0].get_width() == pytest.approx(0.25)
    assert axes[0, 2].patches[0].get_width() > 0  # one sample can be seen too


def test_curves_of_folds_and_of_all():
    history = {"fold 0": [{"epoch": 1, "loss": 2.0, "accuracy": 0.3}, {"epoch": 2, "loss": 1.0, "accuracy": 0.6}],
               "all": [{"epoch": 1, "loss": 1.9}, {"epoch": 2, "loss": 0.9}]}  # fmt: skip
    left, right = figures.fold_curves(history).axes
    assert [line.get_label() for line in left.lines] == ["fold 0", "all"]
    assert [list(line.get_ydata()) for line in left.lines] == [[2.0, 1.0], [1.9, 0.9]]
    assert [list(line.get_ydata()) for line in right.lines] == [[0.3, 0.6]]


def test_bars_of_accuracy_by_length():
    axis = figures.accuracy_by_length(
        {"plots": {"50-99": 0.5, "300-499": 0.8}, "numbers": {"50-99": 0.6, "300-499": 0.9}}
    ).axes[0]
    assert [bar.get_height() for bar in axis.patches] == [0.5, 0.8, 0.6, 0.9]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["50-99", "300-499"]
    places = [bar.get_x() + bar.get_width() / 2 for bar in axis.patches]
    assert (places[0] + places[2]) / 2 == pytest.approx(0) and places[0] < 0 < places[2]


# --------------------------------------------------------------------------------------------------- files
@pytest.fixture(scope="module")
def trained() -> series.Trained:
    history = {"val": [{"epoch": 1, "loss": 2.0, "accuracy": 0.2}]}
    return series.Trained(TINY, series.build_model(TINY).eval(), CLASSES, history, Path("tiny.pth"))


def test_predictions_are_drawn_beside_their_files(trained, tmp_path):
    """Also where the folder is that of the files themselves, which are not to be lost."""
    files = [tmp_path / "a.png", tmp_path / "b.csv"]
    for file in files:
        file.write_text("mine")
    items = traces(2)
    figures.write_predictions(trained, files, items, trained.model.probabilities(items), tmp_path)
    assert all(file.read_text() == "mine" for file in files) and not plt.get_fignums()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.csv", "a_named.png", "b_named.png"}
    assert np.ptp(np.array(Image.open(tmp_path / "a_named.png").convert("L"))) > 0


DRAWN = {"wall", "confusion", "reliability", "looks", "curves"}


def test_every_figure_of_a_model_is_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path)
    found = labelled(traces(12), [k % 9 for k in range(12)])
    probabilities = trained.model.probabilities(found.items)
    metrics = evaluation.measure(probabilities, found.labels, CLASSES)
    paths = figures.draw_all(trained, "tiny", found, metrics, probabilities)
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        f"series/tiny_{kind}.png" for kind in (*DRAWN, "mistakes")}  # fmt: skip
    assert all(np.ptp(np.array(Image.open(path).convert("L"))) > 0 for path in paths) and not plt.get_fignums()


def test_of_each_class_that_is_there_the_surest_plot_is_looked_at(trained, tmp_path, monkeypatch):
    """A model that misses nothing has no mistakes to show; a class without plots has none to look at."""
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path)
    found, seen, looks = labelled(traces(6), [0, 0, 4, 4, 8, 8]), {}, figures.looks
    own = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.6, 0.65])
    probabilities = torch.full((6, 9), 0.02).scatter(1, found.labels[:, None], own[:, None])
    probabilities[1, 8] = 0.7  # surer of this class than its own plots are, but not one of them

    def noted(net, items, titles):
        seen.update(items=items, titles=titles)
        return looks(net, items, titles)

    monkeypatch.setattr(figures, "looks", noted)
    metrics = evaluation.measure(probabilities, found.labels, CLASSES)
    paths = figures.draw_all(trained, "tiny", found, metrics, probabilities)
    assert {path.stem.removeprefix("tiny_") for path in paths} == DRAWN
    assert torch.equal(seen["items"], found.items[[1, 2, 5]])
    assert seen["titles"] == [figures.short(CLASSES[k]) for k in (0, 4, 8)]

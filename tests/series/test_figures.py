"""Figures show what they say: the right plots under the right titles, the worst first, and files on disk."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from src import series, system
from src.series import evaluation, figures
from src.synthetic.time_series import CLASSES
from tests.series.helpers import KnownOutput, envelopes, labelled, pictures

ABC = ("up_trend", "flat", "point_anomaly")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def shown(axis) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())


def visible(figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible()]


def test_a_picture_is_shown_as_it_is_and_an_envelope_between_its_edges():
    _, (left, right) = plt.subplots(1, 2)
    picture, edges = pictures(1)[0], envelopes(1)[0]
    figures.show(left, picture)
    figures.show(right, edges)
    assert np.array_equal(shown(left), picture.permute(1, 2, 0).numpy())
    (outline,) = [path.vertices for path in right.collections[0].get_paths()]
    at = np.isclose(outline[:, 0], 100.5 / 640)
    assert {round(float(y), 3) for y in outline[at, 1]} == {round(float(y), 3) for y in edges[:, 100]}


def test_the_wall_has_a_row_for_each_class_that_there_is():
    items = pictures(7)
    figure = figures.wall(labelled(items, [0, 2, 0, 2, 2, 2, 0], ABC), each=3)
    assert len(figure.axes) == 6 and [axis.get_ylabel() for axis in figure.axes[::3]] == ["up\ntrend", "point\nanom."]
    expected = [0, 2, 6, 1, 3, 4]
    for axis, index in zip(figure.axes, expected, strict=True):
        assert np.array_equal(shown(axis), items[index].permute(1, 2, 0).numpy())


def test_a_class_with_few_plots_leaves_places_empty():
    figure = figures.wall(labelled(envelopes(4), [0, 0, 0, 1], ABC), each=3)
    assert len(visible(figure)) == 4


def test_confusion_counts_and_shares():
    axis = figures.confusion([[3, 1, 0], [0, 0, 0], [2, 0, 8]], ABC).axes[0]
    cells = {tuple(map(int, text.get_position()))[::-1]: int(text.get_text()) for text in axis.texts}
    assert cells == {(0, 0): 3, (0, 1): 1, (2, 0): 2, (2, 2): 8}
    assert np.allclose(shown(axis), [[0.75, 0.25, 0], [0, 0, 0], [0.2, 0, 0.8]])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["up trend", "flat", "point anom."]
    assert axis.get_ylabel() == "true" and axis.get_xlabel() == "predicted"


def test_reliability_is_drawn_against_the_diagonal():
    bins = {"confidence": [0.5, 0.9], "accuracy": [0.4, 0.95], "count": [10, 30]}
    left, right = figures.reliability({"folds": bins}).axes
    diagonal, line = left.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0.5, 0.9], [0.4, 0.95])
    assert list(right.lines[0].get_ydata()) == [10, 30] and line.get_label() == "folds"


PROBABILITIES = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.9, 0.08, 0.02], [0.1, 0.2, 0.7]])


@pytest.mark.parametrize("count", [1, 2, 12])
def test_mistakes_begin_with_the_worst(count):
    """Plots 1, 2 and 3 are misclassified, with 0.1, 0.2 and 0.02 on the truth."""
    items = pictures(5)
    axes = visible(figures.mistakes(labelled(items, [0, 1, 0, 2, 2], ABC), PROBABILITIES, count))
    assert len(axes) == min(count, 3)
    for axis, index in zip(axes, [3, 1, 2], strict=False):
        assert np.array_equal(shown(axis), items[index].permute(1, 2, 0).numpy())
    assert axes[0].get_title() == "point anom., predicted\nup trend (90 %)"


def test_plots_are_shown_over_their_activation_maps():
    items, maps = pictures(4), torch.rand(4, 40)
    events = [[(0.25, 0.5)], [], [(0.1, 0.1), (0.9, 0.9)], []]
    figure = figures.activations(KnownOutput(maps=maps), items, list("abcd"), events)
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
    history = {
        "fold 0": [{"epoch": 1, "loss": 2.0, "accuracy": 0.3}, {"epoch": 2, "loss": 1.0, "accuracy": 0.6}],
        "all": [{"epoch": 1, "loss": 1.9}, {"epoch": 2, "loss": 0.9}],
    }
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


# ---------------------------------------------------------------------------------------- of trained models
def test_predictions_are_drawn_beside_their_files(trained, tmp_path):
    """Also where the folder is that of the files themselves, which are not to be lost."""
    files = [tmp_path / "a.png", tmp_path / "b.csv"]
    for file in files:
        file.write_text("mine")
    items = envelopes(2)
    figures.write_predictions(trained, files, items, trained.model.probabilities(items), tmp_path)
    assert all(file.read_text() == "mine" for file in files) and not plt.get_fignums()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.csv", "a_predicted.png", "b_predicted.png"}
    assert np.ptp(np.array(Image.open(tmp_path / "a_predicted.png").convert("L"))) > 0


DRAWN = {"wall", "confusion", "reliability", "activations", "curves"}


def test_every_figure_of_a_model_is_written(trained, root, project):
    paths = system.write_figures(series, trained, root, None)
    assert {path.relative_to(project / "figures").as_posix() for path in paths} == {
        f"series/plots_{name}.png" for name in (*DRAWN, "mistakes")
    }
    assert all(np.ptp(np.array(Image.open(path).convert("L"))) > 0 for path in paths) and not plt.get_fignums()


def test_of_each_class_that_is_there_the_surest_plot_is_shown(trained, root, monkeypatch):
    """A model that misses nothing has no mistakes to show; a class without plots has none to show."""
    plots, shown_items, activations = labelled(envelopes(6), [0, 0, 4, 4, 8, 8]), {}, figures.activations
    of_truth = torch.tensor([0.5, 0.9, 0.8, 0.7, 0.6, 0.65])
    probabilities = torch.full((6, 9), 0.02).scatter(1, plots.labels[:, None], of_truth[:, None])
    probabilities[1, 8] = 0.7  # surer of this class than its own plots are, but not one of them

    def noted(net, items, titles):
        shown_items.update(items=items, titles=titles)
        return activations(net, items, titles)

    monkeypatch.setattr(figures, "activations", noted)
    monkeypatch.setattr(evaluation, "predict_split", lambda *arguments: (plots, probabilities))
    assert set(series.draw(trained, root, "plots")) == DRAWN
    assert torch.equal(shown_items["items"], plots.items[[1, 2, 5]])
    assert shown_items["titles"] == [figures.short(CLASSES[k]) for k in (0, 4, 8)]


def test_events_by_strength_show_the_strongest_and_the_weakest_of_a_class():
    plots = labelled(envelopes(4), [1, 2, 2, 2], ABC)
    known = [{"snr": snr, "length": 100, "events": [(50, 51)]} for snr in (99, 20, 40, 10)]
    net = series.build_net(series.Config(width=4)).eval()
    figure = figures.events_by_strength(net, plots, known, ["point_anomaly"])
    titles = [axis.get_title() for axis in visible(figure) if axis.get_title()]
    assert titles == ["point anom., 40 dB", "point anom., 10 dB"]


def test_renderings_show_a_series_in_three_ways():
    figure = figures.renderings(np.sin(np.arange(200) / 9))
    assert [axis.get_title() for axis in figure.axes] == ["matplotlib", "rasteriser", "line envelope"]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0]

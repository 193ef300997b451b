"""Figures show what they say: the right images framed in the right colours, and the worst sets."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from src import sets as system
from src.labelled import Labelled
from src.sets import data, figures
from src.sets.model import FlatMLP, SetModel, distance_to_mean
from src.sets.sampling import Sets, fixed_sets
from tests.sets.conftest import CLASSES, SIDE, TINY


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def images(root) -> Labelled:
    return data.read(root, "test", SIDE)


@pytest.fixture(scope="module")
def one_hot(images) -> torch.Tensor:
    """Features that are each image's class."""
    return torch.eye(len(images.classes))[images.labels]


def frames(axis) -> str | None:
    """Colour of an axis' frame, None without one."""
    spine = axis.spines["left"]
    return to_hex(spine.get_edgecolor()).upper() if spine.get_visible() else None


def shown(axis) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())


def test_a_grid_frames_the_odd_one_and_the_one_chosen(images):
    sets = fixed_sets(images, 2, 0)
    odd = sets.position.tolist()
    scores = torch.zeros(2, 10)
    scores[0, odd[0]] = 2.0  # found
    wrong = (odd[1] + 3) % 10
    scores[1, wrong] = 2.0  # missed
    axes = np.reshape(figures.sets_grid(images, sets, scores, ["one", "two"]).axes, (2, 10))
    for row, column in np.ndindex(2, 10):
        pixels = images.items[sets.indices[row, column]].permute(1, 2, 0).numpy()
        assert np.array_equal(shown(axes[row, column]), pixels)
        expected = {(0, odd[0]): figures.BOTH, (1, odd[1]): figures.ODD, (1, wrong): figures.CHOSEN}
        assert frames(axes[row, column]) == expected.get((row, column))
        share = scores[row].softmax(0)[column]
        assert axes[row, column].get_xlabel() == f"{100 * share:.0f} %"
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["one", "two"]
    assert len({figures.BOTH, figures.ODD, figures.CHOSEN}) == 3


def test_sets_are_named_by_their_classes(images):
    sets = fixed_sets(images, 20, 0)
    for name, row, position in zip(figures.names_of(images, sets), sets.indices, sets.position, strict=True):
        names = [images.classes[images.labels[i]] for i in row]
        odd = names.pop(position)
        assert name == f"{names[0]}\n{odd}"
    none = fixed_sets(images, 5, 0, odd=False)
    assert [len(set(name.split("\n"))) for name in figures.names_of(images, none)] == [1] * 5


@pytest.mark.parametrize("chosen", [torch.tensor([3, 1]), torch.arange(4) == 2])
def test_rows_of_sets(images, chosen):
    sets = fixed_sets(images, 4, 0)
    rows = figures.rows_of(sets, chosen)
    assert torch.equal(rows.indices, sets.indices[chosen]) and torch.equal(rows.position, sets.position[chosen])


@pytest.fixture
def judged(images) -> tuple[Sets, torch.Tensor]:
    """40 sets, and scores that miss the odd one in sets 3, 9 and 20, in 9 by the most and in 3 by the least."""
    sets = fixed_sets(images, 40, 1)
    scores = torch.zeros(40, 10).scatter(1, sets.position[:, None], 4.0)
    for row, score in ((3, -1.0), (9, -5.0), (20, -2.0)):
        scores[row, sets.position[row]] = score
    return sets, scores


def rows_shown(figure, images, sets) -> list[int]:
    """Which of the sets a grid shows, row by row."""
    axes = np.reshape(figure.axes, (-1, 10))
    pictures = [torch.stack([torch.from_numpy(shown(axis)).permute(2, 0, 1) for axis in row]) for row in axes]
    return [
        next(i for i, row in enumerate(sets.indices) if torch.equal(images.items[row], picture)) for picture in pictures
    ]


def test_failures_begin_with_the_worst(images, judged):
    assert rows_shown(figures.failures(images, *judged), images, judged[0]) == [9, 20, 3]
    assert rows_shown(figures.failures(images, *judged, count=2), images, judged[0]) == [9, 20]


def test_hard_pairs_are_shown_by_a_missed_set_each(images, judged):
    pairs = [frozenset(name.split("\n")) for name in figures.names_of(images, judged[0])]
    rows = rows_shown(figures.pair_examples(images, *judged), images, judged[0])
    assert set(rows) <= {3, 9, 20}
    shown_pairs = [pairs[row] for row in rows]
    assert len(set(shown_pairs)) == len(shown_pairs) and set(shown_pairs) == {pairs[row] for row in (3, 9, 20)}


def test_attention_marks_the_odd_image(images, trained):
    features, sets = torch.randn(len(images), 256), fixed_sets(images, 1, 0)
    figure = figures.attention(trained.model.head, features, sets)
    maps = trained.model.head.attention_maps(features[sets.indices])[:, 0].detach()
    assert len(figure.axes) == len(maps) == TINY.layers
    assert np.allclose(shown(figure.axes[0]), maps[0], atol=1e-5)
    for ticks in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [i for i, tick in enumerate(ticks) if tick.get_text() == "odd"] == sets.position.tolist()


def test_the_map_of_features_shows_every_image_and_one_set(images, one_hot):
    features = one_hot + 0.05 * torch.randn(one_hot.shape, generator=torch.Generator().manual_seed(0))
    sets = fixed_sets(images, 1, 0)
    left, right = figures.feature_map(features, images, sets).axes
    points = [np.asarray(part.get_offsets()) for part in left.collections]
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(CLASSES)
    assert [len(part) for part in points] == torch.bincount(images.labels).tolist()
    every, nine, odd = [np.asarray(part.get_offsets()) for part in right.collections]
    assert (len(every), len(nine), len(odd)) == (len(images), 9, 1)
    assert np.allclose(odd[0], every[sets.indices[0, sets.position[0]]])


def test_accuracy_by_size_is_drawn_with_chance():
    curves = {"model": {"5": 0.9, "10": 0.8}, "baseline": {"5": 0.4, "10": 0.3}}
    lines = figures.sizes(curves).axes[0].lines
    assert [line.get_label() for line in lines] == ["model", "baseline", "chance"]
    assert [list(line.get_ydata()) for line in lines] == [[0.9, 0.8], [0.4, 0.3], [0.2, 0.1]]
    assert list(lines[0].get_xdata()) == [5, 10]


FIGURES = {"sets", "failures", "pairs", "features", "sizes", "curves", "attention"}


def test_a_model_has_its_figures(root, trained):
    assert set(system.draw(trained, root, "folder")) == FIGURES


class Perfect(torch.nn.Module):
    """Scores that are right wherever features tell the class."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return distance_to_mean(features)


def test_a_model_that_misses_nothing_has_figures_too(root, trained, monkeypatch):
    monkeypatch.setattr(figures.features, "extract", lambda encoder, part: torch.eye(len(part.classes))[part.labels])
    perfect = replace(trained, model=SetModel(trained.model.encoder, Perfect()))
    assert set(system.draw(perfect, root, "folder")) == FIGURES - {"failures", "pairs", "attention"}


def test_the_flat_head_has_figures_too(root, trained):
    torch.manual_seed(0)
    flat = replace(trained, model=SetModel(trained.model.encoder, FlatMLP(256, 10, width=8)))
    assert set(system.draw(flat, root, "folder")) == FIGURES - {"attention"}

"""Figures show what they say: the right images framed in the right colours, the worst sets, and files on disk."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from src import settings
from src.sets import data, figures
from src.sets.data import Sets, fixed_sets
from src.sets.model import FlatMLP, SetModel, distance_to_mean
from tests.sets.conftest import CLASSES, SIDE, TINY


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def images(root) -> data.Images:
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


def test_a_grid_frames_the_odd_one_and_the_one_taken_for_it(images):
    sets = fixed_sets(images, 2, 0)
    odd = sets.position.tolist()
    scores = torch.zeros(2, 10)
    scores[0, odd[0]] = 2.0  # found
    wrong = (odd[1] + 3) % 10
    scores[1, wrong] = 2.0  # missed
    axes = np.reshape(figures.sets_grid(images, sets, scores, ["one", "two"]).axes, (2, 10))
    for row, column in np.ndindex(2, 10):
        pixels = images.pixels[sets.indices[row, column]].permute(1, 2, 0).numpy()
        assert np.array_equal(shown(axes[row, column]), pixels)
        expected = {(0, odd[0]): figures.BOTH, (1, odd[1]): figures.TRUE, (1, wrong): figures.CHOSEN}
        assert frames(axes[row, column]) == expected.get((row, column))
        share = scores[row].softmax(0)[column]
        assert axes[row, column].get_xlabel() == f"{100 * share:.0f} %"
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["one", "two"]
    assert len({figures.BOTH, figures.TRUE, figures.CHOSEN}) == 3


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
    found = figures.rows_of(sets, chosen)
    assert torch.equal(found.indices, sets.indices[chosen]) and torch.equal(found.position, sets.position[chosen])


@pytest.fixture
def judged(images) -> tuple[Sets, torch.Tensor]:
    """40 sets, and scores that miss the odd one in sets 3, 9 and 20, in 9 by the most and in 3 by the least."""
    sets = fixed_sets(images, 40, 1)
    scores = torch.zeros(40, 10).scatter(1, sets.position[:, None], 4.0)
    for row, own in ((3, -1.0), (9, -5.0), (20, -2.0)):
        scores[row, sets.position[row]] = own
    return sets, scores


def rows_shown(figure, images, sets) -> list[int]:
    """Which of the sets a grid shows, row by row."""
    axes = np.reshape(figure.axes, (-1, 10))
    pictures = [torch.stack([torch.from_numpy(shown(axis)).permute(2, 0, 1) for axis in row]) for row in axes]
    return [next(i for i, row in enumerate(sets.indices) if torch.equal(images.pixels[row], picture))
            for picture in pictures]  # fmt: skip


def test_failures_begin_with_the_worst(images, judged):
    assert rows_shown(figures.failures(images, *judged), images, judged[0]) == [9, 20, 3]
    assert rows_shown(figures.failures(images, *judged, count=2), images, judged[0]) == [9, 20]


def test_hard_pairs_are_shown_by_a_missed_set_each(images, judged):
    found = rows_shown(figures.pair_examples(images, *judged), images, judged[0])
    assert set(found) <= {3, 9, 20}
    pairs = [frozenset(figures.names_of(images, judged[0])[row].split("\n")) for row in found]
    every = {frozenset(figures.names_of(images, judged[0])[row].split("\n")) for row in (3, 9, 20)}
    assert len(set(pairs)) == len(pairs) and set(pairs) == every


def test_attention_marks_the_odd_image(images, trained):
    found, sets = torch.randn(len(images), 256), figures.rows_of(fixed_sets(images, 1, 0), torch.arange(1))
    figure = figures.attention(trained.model.head, found, sets)
    maps = trained.model.head.attention_maps(found[sets.indices])[:, 0].detach()
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


def test_a_set_is_written_with_the_highest_score_framed(images, tmp_path):
    path = figures.write_set(images.subset(torch.arange(4)), torch.tensor([0.0, 3, 1, 2]), tmp_path / "new/set.png")
    assert path == tmp_path / "new/set.png" and Image.open(path).width > 300 and not plt.get_fignums()
    blue = np.array([int(figures.BOTH[i : i + 2], 16) for i in (1, 3, 5)])
    framed = (abs(np.array(Image.open(path).convert("RGB")).astype(int) - blue) < 3).all(2).nonzero()[1]
    width = Image.open(path).width
    assert 0.2 * width < framed.min() and framed.max() < 0.55 * width  # the second of four


DRAWN = {"sets", "failures", "pairs", "features", "sizes", "curves", "attention"}


def test_every_figure_of_a_model_is_written(images, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path)
    paths = figures.draw_all(trained, "animals", images)
    assert set(paths) == {tmp_path / f"sets/animals_{kind}.png" for kind in DRAWN}
    assert all(np.ptp(np.array(Image.open(path).convert("L"))) > 0 for path in paths) and not plt.get_fignums()


class Perfect(torch.nn.Module):
    """Scores that are right wherever features tell the class."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return distance_to_mean(features)


def test_a_model_that_misses_nothing_has_figures_too(images, one_hot, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path)
    monkeypatch.setattr(figures.features, "extract", lambda *given: one_hot)
    perfect = replace(trained, model=SetModel(trained.model.encoder, Perfect()))
    paths = figures.draw_all(perfect, "animals", images)
    assert {"animals_sets.png", "animals_sizes.png", "animals_features.png"} <= {path.name for path in paths}


def test_the_flat_head_has_figures_too(images, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "FIGURES_DIR", tmp_path)
    torch.manual_seed(0)
    flat = replace(trained, model=SetModel(trained.model.encoder, FlatMLP(256, 10, width=8)))
    paths = figures.draw_all(flat, "animals", images)
    assert {path.stem.removeprefix("animals_") for path in paths} == DRAWN - {"attention"}

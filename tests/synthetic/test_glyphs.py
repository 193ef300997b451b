"""The mini set of glyphs: form, determinism, and classes that differ in shape and texture alone."""

import json
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import settings
from src.synthetic import glyphs
from src.synthetic.paint import step

FEW = {"train": 2, "test": 1}


def contents(root: Path) -> dict[str, bytes]:
    """Relative name of every file below root -> its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data set of a few images."""
    root = tmp_path_factory.mktemp("glyphs") / "mini"
    glyphs.write_dataset(root, FEW)
    return root


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """24 training images of each class, (32,24,32,32,3) in 0..1."""
    return np.array([[glyphs.render(name, i, "train") for i in range(24)] for name in glyphs.CLASSES]) / 255


def outline(shape: str) -> np.ndarray:
    """A glyph's cover (64,64), upright and of full size, with neither texture nor clutter."""
    return step(10 * glyphs.SHAPES[shape]((glyphs.X - 16) / 10, (glyphs.Y - 16) / 10))


def test_layout_is_class_folders_and_counts_are_kept(root):
    expected = {".version"} | {f"train/{name}/00{i}.png" for name in glyphs.CLASSES for i in range(2)}
    assert set(contents(root)) == expected | {f"test/{name}/000.png" for name in glyphs.CLASSES}
    assert not root.with_name("mini.partial").exists()


def test_classes_are_every_shape_with_every_texture_in_the_order_of_their_folders(root):
    assert len(glyphs.CLASSES) == len(glyphs.SHAPES) * len(glyphs.TEXTURES) == 32
    assert set(glyphs.CLASSES) == {f"{shape}_{texture}" for shape, texture in product(glyphs.SHAPES, glyphs.TEXTURES)}
    assert list(glyphs.CLASSES) == sorted(path.name for path in (root / "train").iterdir())
    assert glyphs.COUNTS == {"train": 100, "test": 25}


def test_a_file_is_what_render_gives(root):
    for split, name in product(FEW, glyphs.CLASSES):
        image = glyphs.render(name, 0, split)
        assert image.dtype == np.uint8 and image.shape == (32, 32, 3)
        with Image.open(root / split / name / "000.png") as file:
            assert file.mode == "RGB" and np.array_equal(file, image)


def test_the_same_arguments_give_the_same_bytes(root, tmp_path):
    np.random.seed(1)  # numpy's own generator plays no part
    glyphs.write_dataset(tmp_path / "again", FEW, workers=1)
    assert contents(tmp_path / "again") == contents(root)


def test_every_argument_matters():
    calls = [("disc_plain", 0, "train"), ("disc_plain", 1, "train"), ("disc_plain", 0, "test")]
    calls += [("disc_dotted", 0, "train"), ("ring_plain", 0, "train")]
    images = [glyphs.render(*call) / 255 for call in calls]
    assert min(abs(a - b).mean() for a, b in combinations(images, 2)) > 0.05  # drawn anew, not merely other noise


def test_no_image_is_there_twice(many):
    assert len(np.unique(many.reshape(-1, 32 * 32 * 3), axis=0)) == 32 * 24


@pytest.mark.parametrize(("one", "other"), list(combinations(glyphs.SHAPES, 2)))
def test_shapes_are_distinct_in_any_direction(one, other):
    def profile(shape):  # share of each ring around the middle that is covered: the same in all directions
        radius, cover = np.hypot(glyphs.X - 16, glyphs.Y - 16), outline(shape)
        return np.array([cover[(radius >= r) & (radius < r + 1)].mean() for r in range(11)])

    assert abs(profile(one) - profile(other)).mean() > 0.05


@pytest.mark.parametrize("shape", glyphs.SHAPES)
def test_shapes_fill_their_circle_and_leave_no_speck_outside(shape):
    cover, radius = outline(shape), np.hypot(glyphs.X - 16, glyphs.Y - 16)
    assert 0.2 < cover[radius < 10].mean() < 0.9
    assert cover[radius > 11.5].max() == 0
    assert radius[cover > 0.5].max() > 8.5


def test_textures_are_distinct():
    inks = np.zeros((1, 1, 1)), np.ones((1, 1, 1))
    drawn = {name: glyphs._pattern(np.random.default_rng(0), name, (16, 16), 5, inks)[0] for name in glyphs.TEXTURES}
    share = {name: picture.mean() for name, picture in drawn.items()}
    edges = {name: sum(abs(np.diff(picture, axis=axis)).mean() for axis in (0, 1)) for name, picture in drawn.items()}
    assert share["plain"] == edges["plain"] == 0
    assert 0.25 < share["dotted"] < 0.42 and 0.45 < share["striped"] < 0.55 and 0.45 < share["halved"] < 0.55
    assert 0 < 4 * edges["halved"] < min(edges["striped"], edges["dotted"])


@pytest.fixture
def bare(monkeypatch) -> np.ndarray:
    """Pixels (8,4,2,16,64,64) of the two inks in 16 images of each class, without clutter, light and noise."""
    black_red_green = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)], float)[:, :, None, None]
    monkeypatch.setattr(glyphs, "_palette", lambda rng: black_red_green)
    monkeypatch.setattr(glyphs, "_cluttered", lambda rng, picture, count, length: picture)
    monkeypatch.setattr(glyphs, "_photograph", lambda rng, picture: picture)
    images = np.array([[glyphs.render(name, i, "test")[:2] for i in range(16)] for name in glyphs.CLASSES])
    inked = (images > 0.75) & (images[:, :, ::-1] < 0.25)  # the ground's own pattern is fainter
    return inked.reshape(8, 4, 16, 2, 64, 64).swapaxes(2, 3)


def test_an_image_shows_the_shape_and_the_texture_of_its_class(bare):
    first, second = np.moveaxis(bare.mean((3, 4, 5)), 2, 0)
    share = dict(zip(glyphs.TEXTURES, (second / (first + second)).T, strict=True))
    assert share["plain"].max() == 0
    assert np.allclose(share["halved"], 0.5, atol=0.12) and np.allclose(share["striped"], 0.5, atol=0.12)
    assert np.allclose(share["dotted"], 0.33, atol=0.1)
    areas, outlines = (first + second).mean(1), np.array([outline(shape).mean() for shape in glyphs.SHAPES])
    assert np.allclose(areas / outlines, (areas / outlines).mean(), rtol=0.15)


def test_a_glyph_is_large_whole_and_anywhere(bare):
    y, x = (np.arange(64) + 0.5) / 2, (np.arange(64) + 0.5) / 2
    mask = bare.any(2).reshape(-1, 64, 64)
    assert mask.mean((1, 2)).min() > 0.03 and 0.1 < mask.mean() < 0.3
    weight = mask / mask.sum((1, 2), keepdims=True)
    middles = np.stack([(weight.sum(1) * x).sum(1), (weight.sum(2) * y).sum(1)], 1)
    assert middles.min() > 4 and middles.max() < 28 and (middles.std(0) > 2.5).all()
    edge = mask.copy()
    edge[:, 1:-1, 1:-1] = False
    assert edge.sum((1, 2)).mean() < 10  # a corner may be cut, no more


def variance_ratio(values: np.ndarray) -> np.ndarray:
    """Variance of the class means of values (32,N,3) against what chance alone gives them: 1 in expectation."""
    return values.mean(1).var(0, ddof=1) / (values.var(1, ddof=1).mean(0) / values.shape[1])


def test_colour_says_nothing_about_the_class(many):
    means = many.mean((2, 3))  # (32,24,3)
    assert (variance_ratio(means) < 2).all()
    assert abs(means.mean((0, 1)) - 0.5).max() < 0.08 and means.std((0, 1)).min() > 0.1


def test_inks_say_nothing_about_the_class(monkeypatch):
    monkeypatch.setattr(glyphs, "_cover", lambda rng, *_: np.ones_like(glyphs.X))  # the glyph fills the image
    monkeypatch.setattr(glyphs, "_cluttered", lambda rng, picture, count, length: picture)
    monkeypatch.setattr(glyphs, "_photograph", lambda rng, picture: picture.mean((1, 2)))
    inks = np.array([[glyphs.render(name, i, "train") for i in range(48)] for name in glyphs.CLASSES])
    assert (variance_ratio(inks) < 2).all()
    assert abs(inks.mean((0, 1)) - 0.5).max() < 0.05 and inks.std((0, 1)).min() > 0.2


def test_pixels_tell_no_odd_one_out(many):
    """Distance to the mean of ten images, nine of one class: near the one in ten of chance."""
    rng, hits, flat = np.random.default_rng(0), 0, many.reshape(32, 24, -1)
    for _ in range(600):
        (normal, odd), chosen = rng.permutation(32)[:2], rng.permutation(24)[:10]
        images = np.concatenate([flat[normal, chosen[:9]], flat[odd, chosen[9:]]])
        hits += np.linalg.norm(images - images.mean(0), axis=1).argmax() == 9
    assert hits / 600 < 0.15


@pytest.mark.parametrize("call", [("hexagon_plain", 0, "train"), ("disc_plain", 0, "val"), ("disc", 0, "test")])
def test_render_refuses_what_it_does_not_know(call):
    with pytest.raises(settings.InputError, match=f"no glyph {call[2]}/{call[0]}: .*train.*ring_striped"):
        glyphs.render(*call)


def test_another_version_or_count_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "render", lambda name, number, split: np.zeros((32, 32, 3), np.uint8))
    root, few = tmp_path / "mini", {"train": 1, "test": 1}
    for change in ({"counts": few | {"train": 2}}, {"counts": few}, {"counts": few}):
        glyphs.write_dataset(root, **change, workers=1)
    assert len(contents(root)) == 1 + 64
    (root / "stale.png").touch()
    glyphs.write_dataset(root, few, workers=1)
    assert (root / "stale.png").exists()
    monkeypatch.setattr(glyphs, "VERSION", glyphs.VERSION + 1)
    glyphs.write_dataset(root, few, workers=1)
    assert len(contents(root)) == 1 + 64
    assert json.loads((root / ".version").read_text())["glyphs"] == glyphs.VERSION

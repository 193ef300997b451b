"""The mini defect images: layout, determinism and true masks."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.synthetic import textures

COUNTS = {"train": 1, "test": 1, "defect": 1, "teacher": 2}
EVERY_DEFECT = [(category, kind) for category in textures.CATEGORIES for kind in textures.DEFECTS]


def digests(root: Path) -> dict:
    """Relative name of every file below root -> SHA-256."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def change(image, twin) -> np.ndarray:
    return abs(image.astype(int) - twin).max(-1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data set of a few images, seed 7."""
    root = tmp_path_factory.mktemp("textures") / "mini"
    textures.write_dataset(root, seed=7, counts=COUNTS)
    return root


def test_layout_is_mvtec_and_counts_are_kept(root):
    expected = {".version", "teacher/000.png", "teacher/001.png"}
    for category in textures.CATEGORIES:
        expected |= {f"{category}/{name}.png" for name in ("train/good/000", "test/good/000")}
        for kind in textures.DEFECTS:
            expected |= {f"{category}/test/{kind}/000.png", f"{category}/ground_truth/{kind}/000_mask.png"}
    assert set(digests(root)) == expected
    assert not root.with_name("mini.partial").exists()


def test_files_have_size_and_mode(root):
    for path in root.rglob("*.png"):
        with Image.open(path) as image:
            is_mask, is_teacher = path.name.endswith("_mask.png"), path.parent.name == "teacher"
            assert image.size == ((160, 160) if is_teacher else (128, 128))
            assert image.mode == ("L" if is_mask else "RGB")
            if is_mask:
                assert set(np.unique(image)) == {0, 255}


def test_full_counts_are_the_stated_table():
    assert textures.COUNTS == {"train": 80, "test": 20, "defect": 10, "teacher": 160}
    assert len(textures.CATEGORIES) == 3
    assert textures.DEFECTS == ("scratch", "hole", "stain", "misplaced")


def test_one_seed_gives_the_same_bytes_by_any_number_of_workers(root, tmp_path):
    textures.write_dataset(tmp_path / "again", seed=7, counts=COUNTS, workers=2)
    assert digests(tmp_path / "again") == digests(root)


@pytest.mark.parametrize(("category", "kind"), EVERY_DEFECT)
def test_a_file_is_what_render_gives(root, category, kind):
    image, mask = textures.render(category, kind, 0, "test", seed=7)
    assert np.array_equal(image, Image.open(root / category / "test" / kind / "000.png"))
    assert np.array_equal(mask, np.asarray(Image.open(root / category / f"ground_truth/{kind}/000_mask.png")) == 255)


def test_every_argument_matters():
    calls = [("fabric", "good", 0, "train", 7), ("tiles", "good", 0, "train", 7), ("fabric", "good", 1, "train", 7)]
    calls += [("fabric", "good", 0, "test", 7), ("fabric", "hole", 0, "test", 7), ("fabric", "good", 0, "train", 8)]
    assert len({textures.render(*call)[0].tobytes() for call in calls}) == len(calls)


@pytest.mark.parametrize(("category", "kind"), EVERY_DEFECT)
@pytest.mark.parametrize("index", [0, 8])
def test_masks_are_true(category, kind, index):
    image, mask, twin = textures.render_twins(category, kind, index, seed=7)
    assert mask.dtype == bool and mask.shape == image.shape[:2]
    assert 0.002 <= mask.mean() <= 0.08
    visible = change(image, twin) > textures.VISIBLE
    assert not visible[~mask].any()
    assert visible[mask].mean() > 0.5  # the rest are closed gaps


def test_marks_grow_from_nearly_invisible_to_clear():
    strongest = {}
    for index in (0, 9):
        twins = [textures.render_twins("tiles", kind, index, seed=7) for kind in ("scratch", "hole", "stain")]
        strongest[index] = np.mean([np.percentile(change(image, twin), 99.9) for image, _, twin in twins])
    assert strongest[0] < 30 and strongest[9] > 2 * strongest[0]


@pytest.mark.parametrize("category", textures.CATEGORIES)
def test_normal_images_vary_and_have_no_mask(category):
    first, second = (textures.render_twins(category, "good", index, "train", seed=7) for index in (0, 1))
    for image, mask, twin in (first, second):
        assert not mask.any() and np.array_equal(image, twin)
    assert change(first[0], second[0]).mean() > 5


def test_categories_differ_in_colour():
    colours = [[textures.render(c, "good", i, seed=7)[0].mean((0, 1)) for i in range(2)] for c in textures.CATEGORIES]
    spread, middles = np.std(colours, axis=1).max(), np.mean(colours, axis=1)
    assert min(np.abs(a - b).max() for a, b in zip(middles, np.roll(middles, 1, 0), strict=True)) > 2 * spread


@pytest.mark.parametrize("call", [("wood", "good", 0), ("bolt", "dent", 0), ("bolt", "good", 0, "val")])
def test_render_refuses_what_it_does_not_know(call):
    with pytest.raises(ValueError, match="/".join(str(part) for part in call[:1])):
        textures.render(*call)


@pytest.fixture
def nothing() -> dict:
    """Counts of next to nothing: only the marker matters."""
    return {"train": 0, "test": 0, "defect": 0, "teacher": 1}


def test_another_version_seed_or_count_is_rebuilt(tmp_path, nothing, monkeypatch):
    root = tmp_path / "mini"
    textures.write_dataset(root, seed=1, counts=nothing)
    for arguments in ({"seed": 2, "counts": nothing}, {"seed": 2, "counts": nothing | {"teacher": 2}}):
        (root / "stale.png").touch()
        textures.write_dataset(root, **arguments)
        assert not (root / "stale.png").exists()
    monkeypatch.setattr(textures, "VERSION", textures.VERSION + 1)
    (root / "stale.png").touch()
    textures.write_dataset(root, **arguments)
    assert not (root / "stale.png").exists()
    assert json.loads((root / ".version").read_text())["textures"] == textures.VERSION


def test_pictures_for_the_teacher_differ_by_index_and_seed():
    pictures = [textures.render_teacher(*call) for call in ((0, 7), (1, 7), (0, 8))]
    assert {picture.shape for picture in pictures} == {(160, 160, 3)}
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert np.array_equal(pictures[0], textures.render_teacher(0, 7))

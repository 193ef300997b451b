"""Readers of plots and numbers: layouts, subsets of classes, errors that name the file, and stratified folds."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import settings
from src.images import DataError
from src.series import data, envelope
from src.synthetic import series_plots, series_raster, time_series

CLASSES = ("mean_shift", "point_anomaly", "volatility")
SMALL = partial(data.picture, size=(60, 80)), partial(series_raster.picture, size=(60, 80))
TRACES = envelope.of_plot, envelope.of_series


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """train/<class>/NNN.png, a 16-colour palette PNG as the real plots are, and NNN.csv: two of each of CLASSES."""
    root = tmp_path_factory.mktemp("series")
    for label in CLASSES:
        for number in range(2):
            series, stem = time_series.generate(label, number, seed=5), root / "train" / label / f"{number:03d}"
            time_series.write_csv(series, stem.with_suffix(".csv"))
            series_plots.draw(series.values, stem.with_suffix(".png"))
            with Image.open(stem.with_suffix(".png")) as image:
                image.convert("RGB").quantize(16).save(stem.with_suffix(".png"))
    return root


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------- plots
def test_plots_are_read_at_one_size(root):
    plots = data.read_series(root, "train", SMALL)
    assert plots.items.shape == (6, 3, 60, 80) and plots.items.dtype == torch.uint8 and len(plots) == 6
    assert plots.labels.tolist() == [0, 0, 1, 1, 2, 2] and plots.classes == CLASSES
    assert plots.names[3] == "point_anomaly/001.png"
    series = time_series.generate("point_anomaly", 1, seed=5)
    drawn = series_raster.picture(series.values, (60, 80))
    likeness = [np.corrcoef(plot.ravel(), drawn.ravel())[0, 1] for plot in plots.items]
    assert int(np.argmax(likeness)) == 3 and likeness[3] > 0.95


def test_class_folders_may_lie_at_the_root(root):
    plots = data.read_series(root / "train", "test", SMALL)
    assert torch.equal(plots.items, data.read_series(root, "train", SMALL).items)


def test_any_classes_in_any_order(root):
    plots = data.read_series(root, "train", SMALL, classes=("volatility", "mean_shift"))
    assert plots.classes == ("volatility", "mean_shift") and plots.labels.tolist() == [0, 0, 1, 1]
    assert plots.names[0] == "volatility/000.png"
    with pytest.raises(settings.InputError, match="no class trend_shift; there are mean_shift, point_anomaly"):
        data.read_series(root, "train", SMALL, classes=("trend_shift",))


def test_a_subset_keeps_its_labels_and_names(root):
    plots = data.read_series(root, "train", SMALL)
    part = plots.subset(torch.tensor([5, 0]))
    assert part.labels.tolist() == [2, 0] and part.names == (plots.names[5], plots.names[0])
    assert torch.equal(part.items[0], plots.items[5]) and part.classes == CLASSES


def test_without_axes_the_line_is_left(root):
    plots = data.read_series(root, "train", (partial(data.picture, size=(120, 160), axes=False), None))
    for plot, name in zip(plots.items.numpy(), plots.names, strict=True):
        label, number = name.split("/")
        values = time_series.generate(label, int(number[:3]), seed=5).values
        drawn = series_raster.picture(values, (120, 160), axes=False)
        assert plot[:, 109:].min() == 255 and plot[:, :, :12].min() == 255
        assert np.corrcoef(plot.ravel(), drawn.ravel())[0, 1] > 0.97


def test_plots_are_read_as_traces(root):
    plots = data.read_series(root, "train", TRACES)
    assert plots.items.shape == (6, 2, envelope.WIDTH) and plots.items.dtype == torch.float16
    own = torch.as_tensor(envelope.of_series(time_series.generate("volatility", 0, seed=5).values)).double()
    errors = (plots.items.double() - own).abs().mean((1, 2))
    assert int(errors.argmin()) == 4 and errors[4] < 0.04


def test_a_plot_that_the_view_refuses_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (790, 590), "white").save(tmp_path / "a" / "white.png")
    for of_plot in (envelope.of_plot, partial(data.picture, axes=False)):
        with pytest.raises(DataError, match="white.png has no blue line"):
            data.read_series(tmp_path, "train", (of_plot, None))


def test_what_a_folder_holds(root):
    assert data.has_split(root, "train") and not data.has_split(root, "val")
    assert data.counts(root, "train") == dict.fromkeys(CLASSES, 2)
    files = data.files(root, "train", ("volatility", "mean_shift"))
    assert [f"{f.parent.name}/{f.name}" for f in files] == [
        "volatility/000.png", "volatility/001.png", "mean_shift/000.png", "mean_shift/001.png"]  # fmt: skip


def test_numbers_stand_in_for_plots_that_are_missing(root, tmp_path):
    """A series with a plot is read from it alone, whatever its CSV file holds; one without, from its numbers."""
    shutil.copytree(root / "train", tmp_path / "train")
    (tmp_path / "train/mean_shift/000.png").unlink()
    (tmp_path / "train/mean_shift/001.csv").write_text("no numbers")
    assert data.counts(tmp_path, "train") == dict.fromkeys(CLASSES, 2)
    whole, mixed = (data.read_series(place, "train", TRACES) for place in (root, tmp_path))
    assert mixed.names == ("mean_shift/000.csv", *whole.names[1:]) and mixed.labels.equal(whole.labels)
    assert torch.equal(mixed.items[1:], whole.items[1:])
    own = envelope.of_series(data.read_csv(root / "train/mean_shift/000.csv"))
    assert np.array_equal(mixed.items[0].numpy(), own)


def test_class_folders_of_numbers_alone(root, tmp_path):
    for file in (root / "train").glob("*/*.csv"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.parent.name)
    found = data.read_series(tmp_path, "test", SMALL)
    assert found.classes == CLASSES and found.names[5] == "volatility/001.csv"
    drawn = series_raster.picture(time_series.generate("volatility", 1, seed=5).values, (60, 80))
    assert np.abs(found.items[5].numpy().astype(float) - drawn).max() <= 1  # as far as a CSV file rounds
    (tmp_path / "volatility/001.csv").write_text("data\n1\n\n2\nmany\n")
    with pytest.raises(DataError, match="volatility/001.csv, line 5: 'many' is not a number"):
        data.read_series(tmp_path, "test", SMALL)


def test_metadata_is_found_by_name(tmp_path):
    series = {f"val/{label}/000": time_series.generate(label, 0, "val", seed=5) for label in CLASSES}
    assert data.metadata(tmp_path, ["volatility/000.png"], "val") == []
    time_series.write_metadata(series, tmp_path / "metadata.json", seed=5)
    rows = data.metadata(tmp_path, ["volatility/000.png", "mean_shift/000.csv"], "val")
    assert [row["label"] for row in rows] == ["volatility", "mean_shift"]
    assert rows[1]["length"] == len(series["val/mean_shift/000"].values)
    with pytest.raises(DataError, match="metadata.json knows nothing of val/volatility/001"):
        data.metadata(tmp_path, ["volatility/001.png"], "val")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": {}}'])
def test_metadata_of_others_are_named(tmp_path, content):
    write(tmp_path / "metadata.json", content)
    with pytest.raises(DataError, match="metadata.json is not what is written beside generated plots: move it"):
        data.metadata(tmp_path, ["volatility/000.png"], "val")


def test_a_wrong_root_says_what_it_must_hold(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=f"{root.name} holds neither train/<class>.* nor <class>.*--root DIR"):
            data.read_series(root, "train", SMALL)


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_unreadable_images_are_named(tmp_path, root, content):
    path = tmp_path / "a" / "bad.png"
    path.parent.mkdir()
    whole = (root / "train" / "volatility" / "000.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match="bad.png is not a readable image"):
        data.read_series(tmp_path, "train", SMALL)


# --------------------------------------------------------------------------------------------- numbers
def test_series_are_read_as_they_were_written(root):
    for label in CLASSES:
        written = time_series.generate(label, 1, seed=5).values
        np.testing.assert_allclose(data.read_csv(root / "train" / label / "001.csv"), written, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "time,data\n0,1\n1,5\n2,-3\n",
        "value,Data\n9,1\n9,5\n8,-3\n",
        "time,value\n0,1\n1,5\n2,-3\n",
        "day,x,y\nMonday,1,7\nTuesday,5,7\nFriday,-3,6\n",
        "x\n1\n5\n-3\n",
        "1\n5\n-3\n",
        "1,9\n5,8\n-3,9\n",
        '\ufefftime,"data"\n0,1\n\n1,5\n\n2,-3',
        "data\r\n1\r\n5.0\r\n-3e0\r\n",
    ],
)
def test_the_column_is_found(tmp_path, text):
    values = data.read_csv(write(tmp_path / "a.csv", text))
    assert values.dtype == np.float64 and values.tolist() == [1, 5, -3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("time,data\n", "is empty"),
        ("data\n5\n", r"is constant \(5\)"),
        ("data\n2.5\n2.5\n2.5\n", r"is constant \(2.5\)"),
        ("data\n1e9\n1.0000000000000001e9\n", "is constant"),
        ("data\n1\nnan\n3\n", "holds nan at sample 1"),
        ("time,data\n0,1\n1,\n2,3\n", "holds nan at sample 1"),
        ("time,data\n0,1\n1\n2,3\n", "holds nan at sample 1"),
        ("data\n1\n2\ninf\n", "holds inf at sample 2"),
        ("data\n1\n2\n1e200\n", "is huge"),
        ("data\n1\n\n2\nthree\n", "line 5: 'three' is not a number"),
        ("data;time\n1;2\n2;3\n", "no column of numbers"),
        ("a,b\nc,d\n", "no column of numbers"),
    ],
)
def test_bad_series_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"bad.csv.*{message}"):
        data.read_csv(write(tmp_path / "bad.csv", text))


def test_too_long_series_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST", 100)
    rows = [str(i) for i in range(101)]
    assert len(data.read_csv(write(tmp_path / "long.csv", "\n".join(["data", *rows[:100]])))) == 100
    assert len(data.read_csv(write(tmp_path / "long.csv", "\n".join(rows[:100])))) == 100
    for header in (["data"], []):
        with pytest.raises(DataError, match="long.csv is huge: thin it out to 100 samples"):
            data.read_csv(write(tmp_path / "long.csv", "\n".join(header + rows)))


def test_what_is_no_table_is_named(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"data\n\xff\xfe\n")
    for path in (tmp_path / "bad.csv", tmp_path / "gone.csv", tmp_path):
        with pytest.raises(DataError, match=f"{path.name} is no table"):
            data.read_csv(path)


# ------------------------------------------------------------------------------------------- generated
def same(a: data.Labelled, b: data.Labelled) -> bool:
    return torch.equal(a.items, b.items) and a.names == b.names and torch.equal(a.labels, b.labels)


def test_the_pool_is_what_the_generator_draws(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 2)
    pool = data.pool(envelope.of_series, 3, CLASSES, first=7, seed=5, workers=1)
    assert pool.items.shape == (9, 2, envelope.WIDTH) and pool.items.dtype == torch.float16
    assert pool.classes == CLASSES and pool.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and len(pool) == 9
    assert pool.names[4] == "point_anomaly/8"
    one = time_series.generate("point_anomaly", 8, seed=5)
    assert np.array_equal(pool.items[4], envelope.of_series(one.values))
    assert (pool.known[4]["length"], pool.known[4]["events"]) == (len(one.values), one.events)
    part = pool.subset(torch.tensor([4]))
    assert part.known == (pool.known[4],) and part.names == ("point_anomaly/8",)


def test_the_pool_is_of_no_data_set_on_disk():
    first = data.pool(envelope.of_series, 1, CLASSES, workers=1).names[0]
    assert int(first.split("/")[1]) > max(series_plots.COUNTS.values())


def test_the_pool_does_not_depend_on_workers_and_grows(monkeypatch):
    view = partial(series_raster.picture, size=(24, 32), axes=False)
    alone, shared = (data.pool(view, 5, CLASSES[:2], 40, workers=workers) for workers in (1, 2))
    assert same(alone, shared) and alone.items.shape == (10, 3, 24, 32) and alone.items.dtype == torch.uint8
    more = data.pool(view, 8, CLASSES[:2], 40, workers=1)
    assert torch.equal(more.items[:5], alone.items[:5]) and torch.equal(more.items[8:13], alone.items[5:])
    assert not same(alone, data.pool(view, 5, CLASSES[:2], 45, workers=1))
    assert not same(alone, data.pool(view, 5, CLASSES[:2], 40, seed=1, workers=1))


# ----------------------------------------------------------------------------------------------- folds
def test_folds_are_stratified_and_repeatable():
    labels = torch.tensor([0] * 13 + [1] * 7 + [2] * 12)[torch.randperm(32)]
    fold = data.folds(labels, 5, seed=1)
    assert fold.dtype == torch.int64
    for part in [labels >= 0, *(labels == name for name in range(3))]:
        counts = torch.bincount(fold[part], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(fold, data.folds(labels, 5, seed=1)) and not torch.equal(fold, data.folds(labels, 5, seed=2))


@pytest.mark.parametrize("count", [1, 8])
def test_impossible_folds_are_refused(count):
    with pytest.raises(settings.InputError, match=f"folds={count}: choose from 2 to 7"):
        data.folds(torch.tensor([0] * 7 + [1] * 9), count)

"""Readers of plots and numbers: layouts, splits, classes, errors that name the file; folds; series by the generator."""

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import series, settings
from src.images import DataError
from src.labelled import Labelled
from src.series import csv_files, data, envelope, generated
from src.series.csv_files import read_csv
from src.synthetic import series_plots, series_raster, time_series
from src.synthetic.time_series import CLASSES
from tests.series.helpers import THREE, TINY

ENVELOPES = envelope.of_plot, envelope.of_series
SMALL = partial(data.picture, size=(60, 80)), partial(series_raster.picture, size=(60, 80))


@pytest.fixture(scope="module")
def real_like(tmp_path_factory) -> Path:
    """train/<class>/NNN.png, a 16-colour palette PNG as the real plots are, and NNN.csv: two of each of THREE."""
    folder = tmp_path_factory.mktemp("series")
    for label in THREE:
        for number in range(2):
            one, stem = time_series.generate(label, number, seed=5), folder / "train" / label / f"{number:03d}"
            time_series.write_csv(one, stem.with_suffix(".csv"))
            series_plots.draw(one.values, stem.with_suffix(".png"))
            with Image.open(stem.with_suffix(".png")) as image:
                image.convert("RGB").quantize(16).save(stem.with_suffix(".png"))
    return folder


def labels_fit_names(part: Labelled) -> bool:
    return [part.classes[k] for k in part.labels.tolist()] == [name.split("/")[0] for name in part.names]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------------- splits
def test_without_a_validation_split_the_first_fold_of_train_is_one(root):
    parts = series.datasets(TINY, root)
    assert {split: len(part) for split, part in parts.items()} == {"train": 36, "val": 9, "test": 18}
    assert not set(parts["train"].names) & set(parts["val"].names)
    for part in parts.values():
        assert part.classes == CLASSES and labels_fit_names(part) and part.items.shape[1:] == (2, 640)
        assert len(set(torch.bincount(part.labels, minlength=9).tolist())) == 1


def test_a_validation_split_on_disk_is_taken(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    shutil.move(tmp_path / "copy/test", tmp_path / "copy/val")
    parts = series.datasets(TINY, tmp_path / "copy")
    assert {split: len(part) for split, part in parts.items()} == {"train": 45, "val": 18}


def test_folds_follow_the_seed(root):
    names = [series.datasets(replace(TINY, seed=seed, classes=THREE), root)["val"].names for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_pictures_are_read_for_networks_of_pictures(root):
    config = replace(TINY, backbone="resnet18", size=(60, 80), classes=THREE)
    full, line = (series.datasets(replace(config, axes=axes), root, ("test",))["test"].items for axes in (True, False))
    assert full.shape == line.shape == (6, 3, 60, 80) and full.dtype == torch.uint8
    assert full.float().mean() < line.float().mean() and line[:, :, -5:].min() == 255


def test_classes_may_be_chosen(root):
    chosen = THREE[::-1]
    parts = series.datasets(replace(TINY, classes=chosen), root)
    assert all(part.classes == chosen and labels_fit_names(part) for part in parts.values()) and len(parts["test"]) == 6
    with pytest.raises(settings.InputError, match="no class unicorn; there are collective_anomaly"):
        series.datasets(replace(TINY, classes=("volatility", "unicorn")), root)


def test_a_folder_may_lack_classes_but_bring_no_other(root, tmp_path):
    for label in THREE:
        shutil.copytree(root / "test" / label, tmp_path / "train" / label)
    part = series.read_split(TINY, tmp_path, "train")
    assert part.classes == CLASSES and labels_fit_names(part)
    (tmp_path / "train/volatility").rename(tmp_path / "train/bursts")
    with pytest.raises(settings.InputError, match="holds classes that are not known: bursts; .*classes="):
        series.read_split(TINY, tmp_path, "train")


def test_generated_data_is_on_no_disk(monkeypatch):
    monkeypatch.setattr(data, "DRAWN", 4)
    config = replace(TINY, dataset="generated", classes=THREE)
    parts = series.datasets(config)
    assert {split: len(part) for split, part in parts.items()} == {"train": 12, "val": 12, "test": 12}
    for part in parts.values():
        assert part.classes == THREE and labels_fit_names(part) and len(part.known) == 12
    assert len({item.numpy().tobytes() for part in parts.values() for item in part.items}) == 36
    assert not torch.equal(series.datasets(replace(config, seed=1))["val"].items, parts["val"].items)


def test_a_root_without_plots_is_named(root, tmp_path):
    with pytest.raises(DataError, match=f"{root}/test has no train/<class> folders"):
        series.datasets(TINY, root / "test")
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=f"{folder} holds neither test/<class>.* nor <class>.*--root DIR"):
            series.read_split(TINY, folder, "test")


def test_the_distribution_counts_series(root):
    expected = {"train": dict.fromkeys(CLASSES, 5), "test": dict.fromkeys(CLASSES, 2)}
    assert series.distribution(TINY, root) == expected


# ------------------------------------------------------------------------------------------------ plots
def test_plots_are_read_at_one_size(real_like):
    plots = data.read_folder(real_like, "train", SMALL)
    assert plots.items.shape == (6, 3, 60, 80) and plots.items.dtype == torch.uint8
    assert plots.labels.tolist() == [0, 0, 1, 1, 2, 2] and plots.classes == THREE
    assert plots.names[3] == "point_anomaly/001.png"
    drawn = series_raster.picture(time_series.generate("point_anomaly", 1, seed=5).values, (60, 80))
    likeness = [np.corrcoef(plot.ravel(), drawn.ravel())[0, 1] for plot in plots.items]
    assert int(np.argmax(likeness)) == 3 and likeness[3] > 0.95


def test_without_axes_the_line_is_left(real_like):
    plots = data.read_folder(real_like, "train", (partial(data.picture, size=(120, 160), axes=False), None))
    for plot, name in zip(plots.items.numpy(), plots.names, strict=True):
        label, number = name.split("/")
        values = time_series.generate(label, int(number[:3]), seed=5).values
        drawn = series_raster.picture(values, (120, 160), axes=False)
        assert plot[:, 109:].min() == 255 and plot[:, :, :12].min() == 255
        assert np.corrcoef(plot.ravel(), drawn.ravel())[0, 1] > 0.97


def test_plots_are_read_as_envelopes(real_like):
    plots = data.read_folder(real_like, "train", ENVELOPES)
    assert plots.items.shape == (6, 2, envelope.WIDTH) and plots.items.dtype == torch.float16
    computed = envelope.of_series(time_series.generate("volatility", 0, seed=5).values)
    errors = (plots.items.double() - torch.as_tensor(computed).double()).abs().mean((1, 2))
    assert int(errors.argmin()) == 4 and errors[4] < 0.04


def test_numbers_stand_in_for_plots_that_are_missing(real_like, tmp_path):
    """A series with a plot is read from it alone, whatever its CSV file holds; one without, from its numbers."""
    shutil.copytree(real_like / "train", tmp_path / "train")
    (tmp_path / "train/mean_shift/000.png").unlink()
    (tmp_path / "train/mean_shift/001.csv").write_text("no numbers")
    plotted, mixed = (data.read_folder(folder, "train", ENVELOPES) for folder in (real_like, tmp_path))
    assert mixed.names == ("mean_shift/000.csv", *plotted.names[1:]) and mixed.labels.equal(plotted.labels)
    assert torch.equal(mixed.items[1:], plotted.items[1:])
    computed = envelope.of_series(read_csv(real_like / "train/mean_shift/000.csv"))
    assert np.array_equal(mixed.items[0].numpy(), computed)


def test_a_plot_that_cannot_be_used_is_named(real_like, tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (790, 590), "white").save(tmp_path / "a" / "white.png")
    for of_plot in (envelope.of_plot, partial(data.picture, axes=False)):
        with pytest.raises(DataError, match="white.png has no blue line"):
            data.read_folder(tmp_path, "train", (of_plot, None))
    plot = (real_like / "train/volatility/000.png").read_bytes()
    (tmp_path / "a" / "torn.png").write_bytes(plot[: len(plot) // 2])
    with pytest.raises(DataError, match="torn.png is not a readable image"):
        data.read_folder(tmp_path, "train", SMALL)


# ------------------------------------------------------------------------------------------- metadata
def test_metadata_is_read_by_name(tmp_path):
    known = {f"val/{label}/000": time_series.generate(label, 0, "val", seed=5) for label in CLASSES}
    assert data.metadata(tmp_path, ["volatility/000.png"], "val") == []
    time_series.write_metadata(known, tmp_path / "metadata.json", seed=5)
    rows = data.metadata(tmp_path, ["volatility/000.png", "mean_shift/000.csv"], "val")
    assert [row["label"] for row in rows] == ["volatility", "mean_shift"]
    assert rows[1]["length"] == len(known["val/mean_shift/000"].values)
    with pytest.raises(DataError, match="metadata.json knows nothing of val/volatility/001"):
        data.metadata(tmp_path, ["volatility/001.png"], "val")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"rows": {}}', '{"series": []}', '{"series": {"val/volatility/000": {"length": 9}}}'],
)
def test_metadata_of_others_is_named(tmp_path, content):
    write(tmp_path / "metadata.json", content)
    with pytest.raises(DataError, match="metadata.json is not what is written beside generated plots: move it"):
        data.metadata(tmp_path, ["volatility/000.png"], "val")


# --------------------------------------------------------------------------------------------- numbers
def test_series_are_read_as_they_were_written(real_like):
    for label in THREE:
        written = time_series.generate(label, 1, seed=5).values
        np.testing.assert_allclose(read_csv(real_like / "train" / label / "001.csv"), written, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "time,data\n0,1\n1,5\n2,-3\n",
        "value,Data\n9,1\n9,5\n8,-3\n",
        "time,value\n0,1\n1,5\n2,-3\n",
        "day,x,y\nMonday,1,7\nTuesday,5,7\nFriday,-3,7\n",
        "x\n1\n5\n-3\n",
        "1\n5\n-3\n",
        '\ufefftime,"data"\n0,1\n\n1,5\n\n2,-3',
        "data\r\n1\r\n5.0\r\n-3e0\r\n",
    ],
)
def test_the_column_of_values(tmp_path, text):
    values = read_csv(write(tmp_path / "a.csv", text))
    assert values.dtype == np.float64 and values.tolist() == [1, 5, -3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("time,data\n", "is empty"),
        ("data\n5\n", r"is constant \(5\)"),
        ("data\n1e9\n1.0000000000000001e9\n", "is constant"),
        ("data\n1\nnan\n3\n", "holds nan at sample 1"),
        ("time,data\n0,1\n1,\n2,3\n", "holds nan at sample 1"),
        ("time,data\n0,1\n1\n2,3\n", "holds nan at sample 1"),
        ("data\n1\n2\ninf\n", "holds inf at sample 2"),
        ("data\n1\n2\n1e200\n", "is huge"),
        ("data\n1\n\n2\nthree\n", "line 5: 'three' is not a number"),
        ("a,b\nc,d\n", "no column of numbers"),
    ],
)
def test_bad_series_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"bad.csv.*{message}"):
        read_csv(write(tmp_path / "bad.csv", text))


WAVE = [round(20 + 2 * math.sin(i / 9) + 5 * (i > 40) + 0.1 * (i % 3), 2) for i in range(80)]


def table(header: str, row, mark: str = ".") -> str:
    """A CSV file of WAVE: row(i, text of the value) makes each line."""
    return header + "".join(row(i, f"{value:.2f}".replace(".", mark)) + "\n" for i, value in enumerate(WAVE))


INDEXED = {
    "pandas DataFrame": table(",temperature\n", lambda i, v: f"{i},{v}"),
    "pandas DataFrame, rows dropped": table(",temperature\n", lambda i, v: f"{i + i // 7},{v}"),
    "pandas Series": table(",0\n", lambda i, v: f"{i},{v}"),
    "pandas Series without index": table("0\n", lambda i, v: v),
    "epoch": table("timestamp_ms,temperature\n", lambda i, v: f"{1700000000000 + 60000 * i + i % 5},{v}"),
    "seconds": table("time [s],Value [C]\n", lambda i, v: f"{i / 3:.3f},{v}"),
    "years and months": table("date,n\n", lambda i, v: f"{2000 + i // 12}.{i % 12 + 1:02d},{v}"),
    "no header": table("", lambda i, v: f"{i},{v}"),
    "constant station": table("station,Time,level\n", lambda i, v: f"17,2024-01-01 00:{i % 60:02d},{v}"),
    "comments": table("# made by a logger\n# 1,2,3\nt,x\n", lambda i, v: f"{i},{v}"),
    "units": table("time,level\ns,m\n", lambda i, v: f"{i * 0.5},{v}"),
    "sep": table("sep=;\ntime;level\n", lambda i, v: f"{i};{v}"),
    "tabs": table("time\tlevel\n", lambda i, v: f"{i}\t{v}"),
    "quality beside value": table("time,value,quality\n", lambda i, v: f"{i},{v},{i * i % 7}"),
    "German": table("Zeit;Wert\n", lambda i, v: f"01.02.2024 00:{i % 60:02d};{v}", ","),
    "German, one column": table("Wert\n", lambda i, v: v, ","),
    "German, thousands": table("Zeit;Wert\n", lambda i, v: f"{i};{1 + i // 40}.{100 + int(v[:2]):03d},{v[3:]}", ","),
    "decimal commas in quotes": table("time,level\n", lambda i, v: f'{i},"{v}"', ","),
    "minus signs": table("level\n", lambda i, v: f"\N{MINUS SIGN}{v}"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", INDEXED)
def test_the_series_is_told_from_index_and_time_in_any_dialect(tmp_path, name, encoding):
    (tmp_path / "a.csv").write_text(INDEXED[name], encoding=encoding)
    expected = np.array(WAVE)
    if name == "German, thousands":
        expected = np.array([1000 * (1 + i // 40) + 100 + value for i, value in enumerate(WAVE)])
    np.testing.assert_allclose(
        read_csv(tmp_path / "a.csv"), -expected if name == "minus signs" else expected, atol=1e-9
    )


REFUSED = {
    "two measurements": (
        table("time,a,b\n", lambda i, v: f"{i},{v},{i * i % 7}"),
        "2 columns .* of time, a, b: .*--column",
    ),
    "no names": (table("", lambda i, v: f"{v},{i * i % 7}"), "2 columns .* of 1, 2: .*--column"),
    "times alone": (table("time,name\n", lambda i, v: f"{i},a{v}"), "0 columns .* of time"),
    "decimal commas between commas": (
        table("t,x\n", lambda i, v: f"{i},{v}", ","),
        "line 2 has more cells than line 1",
    ),
    "decimal commas or two columns": ("1,9\n5,8\n-3,9\n", "1,9: two columns, or a decimal comma"),
    "decimal commas or thousands": ("x\n1,234\n999\n1,001\n", "line 2: '1,234' may hold a decimal mark or thousands"),
    "points or thousands": ("x;y\na;1.234\nb;999\nc;1.001\n", "line 2: '1.234' may hold a decimal mark or thousands"),
    "pandas or zero": ("0\n5\n7\n5\n", "begins with 0: numbers, or labels"),
    "mixed marks": ("x\n1.5\n2,5\n1.25\n", "line 3: '2,5' is not a number"),
    "units in cells": ("x\n1.5 C\n2.5 C\n", "no column of numbers"),
    "summary below": ("x\n1.5\n2.5\nmean: 2\n", "line 4: 'mean: 2' is not a number"),
    "spaces": ("1 1.5\n2 2.5\n3 2\n", "no column of numbers"),
    "metadata": (table("logger 17\nrate,100\n\ntime,level\n", lambda i, v: f"{i},{v}"), "no column of numbers"),
    "zero bytes": ("x\n1\0\n2\0\n", "zero bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, name):
    text, message = REFUSED[name]
    with pytest.raises(DataError, match=f"a.csv.*{message}"):
        read_csv(write(tmp_path / "a.csv", text))


@pytest.mark.parametrize("form", ["{:,.1f}", '"{:,.1f}"', "{:,.2f}"])
def test_thousands_before_a_point_are_read(tmp_path, form):
    values = [round(100 * value, 1) for value in WAVE]
    text = "value\n" + "\n".join(map(form.format, values))
    np.testing.assert_allclose(read_csv(write(tmp_path / "a.csv", text)), values)


def test_a_column_is_chosen_by_name_or_number(tmp_path, capsys):
    two = write(tmp_path / "a.csv", REFUSED["two measurements"][0])
    assert read_csv(two, "A").tolist() == WAVE and read_csv(two, "time").tolist() == list(range(80))
    assert "column a of its CSV files is read" in capsys.readouterr().err
    bare = write(tmp_path / "b.csv", REFUSED["no names"][0])
    assert read_csv(bare, "1").tolist() == WAVE
    with pytest.raises(DataError, match="a.csv has no column 'c' of numbers; there are time, a, b"):
        read_csv(two, "c")


def test_too_long_series_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "LONGEST", 100)
    rows = [str(i) for i in range(1, 102)]
    assert len(read_csv(write(tmp_path / "long.csv", "\n".join(["data", *rows[:100]])))) == 100
    for header in (["data"], []):
        with pytest.raises(DataError, match="long.csv is huge: thin it out to 100 samples"):
            read_csv(write(tmp_path / "long.csv", "\n".join(header + rows)))


def test_what_is_no_table_is_named(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"data\n\xff\xfe\n")
    for path in (tmp_path / "bad.csv", tmp_path / "gone.csv", tmp_path):
        with pytest.raises(DataError, match=f"{path.name} is no table"):
            read_csv(path)


# ------------------------------------------------------------------------------------------- generated
def equal(a: Labelled, b: Labelled) -> bool:
    events = [[row["events"] for row in part.known] for part in (a, b)]
    return torch.equal(a.items, b.items) and a.names == b.names and events[0] == events[1]


def test_what_the_generator_draws(monkeypatch):
    monkeypatch.setattr(generated, "CHUNK", 2)
    plots = generated.draw_series(envelope.of_series, range(7, 10), THREE, seed=5)
    assert plots.items.shape == (9, 2, envelope.WIDTH) and plots.items.dtype == torch.float16
    assert plots.classes == THREE and plots.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert plots.names[4] == "point_anomaly/8"
    one = time_series.generate("point_anomaly", 8, seed=5)
    assert np.array_equal(plots.items[4], envelope.of_series(one.values))
    assert (plots.known[4]["length"], plots.known[4]["events"]) == (len(one.values), one.events)


def test_epochs_are_drawn_ahead_by_other_processes(monkeypatch):
    """They are what this process draws, in whatever order they are asked for; none is of a data set on disk."""
    monkeypatch.setattr(generated, "CHUNK", 2)
    expected = [generated.draw_series(envelope.of_series, generated.epoch_numbers(3, k), THREE, 42) for k in range(3)]
    monkeypatch.setattr(generated, "FEW", 0)
    with generated.draw_epochs(envelope.of_series, 3, THREE, 42, 3) as draw:
        assert all(equal(draw(epoch), expected[epoch]) for epoch in (1, 2, 0))
    numbers = [int(name.split("/")[1]) for part in expected for name in part.names]
    assert len(set(numbers)) == 9 and min(numbers) > max(series_plots.COUNTS.values())


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

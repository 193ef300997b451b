"""The command line in process: every action on small data, and what it says when something is wrong."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import __main__, checkpoints, road, series, sets, settings, system
from src.__main__ import main
from src.road import data
from src.synthetic import street_scenes
from tests.conftest import MINI_COUNTS

PROJECT = Path(__main__.__file__).parents[1]
HEADLINE = ("miou", "pixel_accuracy", "aupr", "auroc", "fpr95", "f1_max")
PROVENANCE = ("command", "git_revision", "config", "seed", "data", "protocol", "wall_time", "device")
TINY = ("epochs=1", "batch_size=4", "width=0.25", "image_size=(48,80)", "workers=0", "outlier_epochs=1")


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path) -> Path:
    """Every folder that a command writes to, inside ``tmp_path``."""
    for name in ("DATA", "WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        monkeypatch.setattr(settings, f"{name}_DIR", tmp_path / name.lower())
    return tmp_path


def run(*arguments) -> int:
    return main([str(argument) for argument in ("road", *arguments)])


def failure(capsys, *arguments) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


@pytest.fixture
def bare_weights(tiny_weights, tmp_path) -> Path:
    """The weights of ``tiny_weights`` as others publish theirs: named tensors and nothing else."""
    torch.save(checkpoints.load(tiny_weights)["weights"], tmp_path / "bare.pth")
    return tmp_path / "bare.pth"


# ----------------------------------------------------------------------------------------------- data
def test_data_writes_the_mini_set_and_its_distribution(mini_root, monkeypatch, folders):
    small = partial(street_scenes.write_dataset, counts=MINI_COUNTS, size=(90, 160))
    monkeypatch.setattr(street_scenes, "write_dataset", small)
    assert run("data", "--root", mini_root) == 0
    record = json.loads((folders / "results/road/mini_distribution.json").read_text())
    expected = data.class_distribution(data.StreetHazards(mini_root, "test"))
    assert set(record["distribution"]) == set(MINI_COUNTS) and record["distribution"]["test"] == expected


def test_data_describes_a_set_without_writing_it(road_anomaly_root, folders):
    assert run("data", "--dataset", "road_anomaly", "--root", road_anomaly_root) == 0
    record = json.loads((folders / "results/road/road_anomaly_distribution.json").read_text())
    assert list(record["distribution"]) == ["test"]


def test_data_overwrites_nothing(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert str(tmp_path / "mine") in failure(capsys, "data", "--root", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


# ---------------------------------------------------------------------------------------------- train
def test_train_writes_weights_that_hold_their_config(mini_root, folders, capsys):
    assert run("train", "--root", mini_root, *TINY) == 0
    path = folders / "weights/road/mini.pth"
    assert f"wrote {path}" in capsys.readouterr().out
    content = checkpoints.load(path)
    assert content["config"]["image_size"] == [48, 80] and content["config"]["width"] == 0.25
    assert set(content["extras"]["calibration"]["statistics"]) == {"train", "val"}
    assert {"outlier", "max_logit", "sml"} < set(content["extras"]["calibration"]["thresholds"])
    assert (folders / "runs/road/mini/last.pth").exists() and (folders / "runs/road/mini/outliers/last.pth").exists()


def test_train_takes_the_data_set_named(camvid_root, folders):
    arguments = ("--dataset", "camvid", "--root", camvid_root, *TINY, "batch_size=2", "image_size=(48,64)")
    assert run("train", *arguments) == 0
    trained = system.load(road, folders / "weights/road/camvid.pth", road.Config.mini())
    assert trained.config.dataset == "camvid" and trained.model.classifier[4].out_channels == 11


# ------------------------------------------------------------------------------------------- evaluate
def test_evaluate_writes_the_record(mini_root, tiny_weights, tiny_config, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert run("evaluate", "--root", mini_root, "--weights", tiny_weights, "--json", out, "width=0.25") == 0
    record = json.loads(out.read_text())
    assert set(PROVENANCE) <= record.keys()
    assert all(isinstance(record[key], float) and 0 <= record[key] <= 1 for key in HEADLINE)
    assert record["config"]["image_size"] == [48, 80] and record["seed"] == tiny_config.seed
    assert record["data"]["dataset"] == "mini" and record["data"]["split"] == "test"
    assert record["data"]["files"] == 12 and len(record["data"]["sha256"]) == 64
    assert record["images"] == 6 and record["wall_time"] >= 0 and record["git_revision"]
    assert record["protocols"]["pooled"]["max_logit"]["aupr"] == record["aupr"]
    expected = f"python -m src road evaluate --root DIR/mini --weights DIR/tiny.pth --json DIR/{out.name} width=0.25"
    assert record["command"] == expected
    assert f"miou {record['miou']:.4f}" in capsys.readouterr().out


def test_evaluate_another_split_and_the_form_with_equals(mini_root, tiny_weights, tmp_path, capsys):
    arguments = (f"--root={mini_root}", f"--weights={tiny_weights}", f"--json={tmp_path / 'val.json'}")
    assert run("evaluate", "--split", "val", *arguments) == 0
    record = json.loads((tmp_path / "val.json").read_text())
    assert record["data"]["split"] == "val" and "aupr" not in record and str(tmp_path) not in record["command"]
    (epoch,) = checkpoints.load(tiny_weights)["extras"]["history"]
    assert record["miou"] == pytest.approx(epoch["miou"], abs=1e-6)


def test_evaluate_on_road_anomaly(road_anomaly_root, tiny_weights, tmp_path):
    arguments = ("--dataset", "road_anomaly", "--root", road_anomaly_root, "--json", tmp_path / "out.json")
    assert run("evaluate", "--weights", tiny_weights, *arguments) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["data"]["dataset"] == "road_anomaly" and "aupr" in record and "miou" not in record


def test_evaluate_a_bare_state_dict(mini_root, bare_weights, tmp_path, capsys):
    arguments = ("--root", mini_root, "--weights", bare_weights, "--json", tmp_path / "out.json")
    assert run("evaluate", *arguments, *TINY) == 0
    assert "no calibration" in capsys.readouterr().out
    assert "sml" not in json.loads((tmp_path / "out.json").read_text())["scores"]
    assert "does not fit the model" in failure(capsys, "evaluate", *arguments, "width=0.5")


def test_evaluate_the_best_epoch_of_a_run(mini_root, tiny_weights, capsys):
    best = tiny_weights.parent / "run" / "best.pth"
    assert run("evaluate", "--split", "val", "--root", mini_root, "--weights", best) == 0
    assert "no calibration" in capsys.readouterr().out


@pytest.mark.parametrize("pair, key", [("output_stride=16", "output_stride"), ("epochs=7", "epochs")])
def test_contradicting_the_checkpoint_is_an_error(tiny_weights, capsys, pair, key):
    message = failure(capsys, "evaluate", "--weights", tiny_weights, pair)
    assert key in message and "tiny.pth" in message and pair.split("=")[1] in message


# --------------------------------------------------------------------------------- predict and figures
def test_predict_writes_overlay_and_score_map(mini_root, tiny_weights, tmp_path, capsys):
    files = [image for image, _ in data.StreetHazards(mini_root, "test").pairs[:2]]
    assert run("predict", *files, "--weights", tiny_weights, "--out", tmp_path / "pictures") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [str(file) for file in files]
    for file, row in zip(files, rows, strict=True):
        for name in ("overlay", "max_logit"):
            picture = Image.open(tmp_path / "pictures" / f"{file.stem}_{name}.png")
            assert row[name] == picture.filename and picture.size == (160, 90) and np.ptp(np.array(picture)) > 0
        assert 0 < row["mean_confidence"] <= 1 and 0 <= row["share_above_threshold"] <= 1


def test_a_folder_is_predicted_as_its_images_one_by_one(mini_root, tiny_weights, tmp_path, capsys):
    folder = tmp_path / "streets"
    folder.mkdir()
    for number, (image, _) in enumerate(data.StreetHazards(mini_root, "test").pairs):
        with Image.open(image) as picture:
            size = (160, 90) if number != 2 else (120, 90)  # one between the others is of another size
            picture.resize(size).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("where they were taken")
    weights = ("--weights", tiny_weights, "--out")
    assert run("predict", folder, *weights, tmp_path / "together") == 0
    output = capsys.readouterr()
    rows = json.loads(output.out)
    assert [row["image"] for row in rows] == [str(folder / f"{number}.png") for number in range(6)]
    assert "left out 1 file" in output.err and "predicting" not in output.err  # the bar is for terminals
    for row in rows:
        assert run("predict", row["image"], *weights, tmp_path / "alone") == 0
        (alone,) = json.loads(capsys.readouterr().out)
        for name in ("overlay", "max_logit"):
            pictures = [np.array(Image.open(path), dtype=int) for path in (row.pop(name), alone.pop(name))]
            assert np.abs(np.subtract(*pictures)).mean() < 0.1
        assert row.pop("image") == alone.pop("image") and row == pytest.approx(alone, abs=2e-4)


def test_a_folder_stands_for_the_files_that_a_system_reads(tmp_path, capsys):
    for name in ("b.jpg", "a.PNG", "a.csv", "c.csv", ".hidden.png", "notes.txt", "below/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    before = tmp_path / "below/d.png"

    def names(system) -> list[str]:
        return [path.name for path in __main__.input_files(system, [before, tmp_path])]

    assert names(road) == names(sets) == ["d.png", "a.PNG", "b.jpg"]
    capsys.readouterr()
    assert names(series) == ["d.png", "a.PNG", "b.jpg", "c.csv"]  # a.csv holds what a.PNG shows
    assert "read 1 series from plots, not from the CSV files" in capsys.readouterr().err


def test_an_empty_folder_is_named(tmp_path, tiny_weights, capsys):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no images" in failure(
        capsys, "predict", tmp_path / "empty", "--weights", tiny_weights
    )
    assert "is not a file" in failure(capsys, "predict", tmp_path / "empty", "--weights", tmp_path)


def test_predict_refuses_files_whose_pictures_would_overwrite_each_other(tiny_weights, mini_root, tmp_path, capsys):
    files = [tmp_path / folder / "street.png" for folder in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(data.StreetHazards(mini_root, "test").pairs[0][0].read_bytes())
    assert "two of the files have this name" in failure(capsys, "predict", *files, "--weights", tiny_weights)


def test_figures_are_written(mini_root, tiny_weights, folders, capsys):
    assert run("figures", "--root", mini_root, "--weights", tiny_weights) == 0
    expected = {f"mini_{split}_{kind}" for split in ("val", "test") for kind in ("six", "grid", "failures")}
    expected |= {"mini_scores", "mini_logits", "mini_found", "mini_curves"}
    written = {path.stem: path for path in (folders / "figures/road").glob("*.png")}
    assert set(written) == expected and len(capsys.readouterr().out.splitlines()) == len(expected)
    assert all(Image.open(path).size[0] > 500 for path in written.values())


def test_figures_of_a_bare_state_dict_on_another_set(road_anomaly_root, bare_weights, folders):
    arguments = ("--dataset", "road_anomaly", "--root", road_anomaly_root, "--weights", bare_weights)
    assert run("figures", *arguments, *TINY) == 0
    names = {path.name for path in (folders / "figures/road").iterdir()}
    assert names == {"road_anomaly_scores.png", "road_anomaly_logits.png"}  # those found need calibrated scores


# --------------------------------------------------------------------------------------------- errors
def test_missing_weights_name_the_command(capsys, folders):
    message = failure(capsys, "evaluate")
    assert str(folders / "weights/road/mini.pth") in message and "python -m src road train --profile mini" in message
    assert "camvid.pth" in failure(capsys, "figures", "--profile", "real")
    assert "lost.pth" in failure(capsys, "evaluate", "--weights", folders / "lost.pth")


def test_damaged_weights_are_named(tiny_weights, tmp_path, capsys):
    (tmp_path / "half.pth").write_bytes(tiny_weights.read_bytes()[:5000])
    assert "half.pth" in failure(capsys, "evaluate", "--weights", tmp_path / "half.pth")


@pytest.mark.parametrize("arguments, message", [
    (("train", "rate=0.1"), "rate=0.1: unknown setting"),
    (("train", "epochs=many"), "epochs=many"),
    (("train", "backbone=vgg16"), "vgg16"),
    (("train", "augmentation=blur"), "blur"),
    (("data", "--dataset", "kitti"), "kitti"),
    (("train", "--dataset", "kitti"), "kitti"),
    (("train", "--dataset", "road_anomaly"), "train"),
    (("predict",), "predict needs files"),
])  # fmt: skip
def test_wrong_settings_are_named(capsys, mini_root, arguments, message):
    assert message in failure(capsys, *arguments, "--root", mini_root)


def test_wrong_names_with_good_weights(tiny_weights, mini_root, capsys, tmp_path):
    weights = ("--weights", tiny_weights)
    assert "kitti" in failure(capsys, "evaluate", "--dataset", "kitti", *weights)
    assert "kitti" in failure(capsys, "figures", "--dataset", "kitti", *weights)
    assert "holdout" in failure(capsys, "evaluate", "--split", "holdout", "--root", mini_root, *weights)
    assert str(tmp_path / "empty") in failure(capsys, "evaluate", "--root", tmp_path / "empty", *weights)
    (tmp_path / "notes.jpg").write_text("no picture")
    assert str(tmp_path / "notes.jpg") in failure(capsys, "predict", tmp_path / "notes.jpg", *weights)
    assert str(tmp_path / "lost.jpg") in failure(capsys, "predict", tmp_path / "lost.jpg", *weights)


def test_only_predict_takes_files(capsys):
    assert run("train", "street.jpg") == 2
    assert "street.jpg" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "examples:" in text
    assert all(f"python -m src road {action}" in text for action in ("data", "train", "evaluate", "predict"))


def test_paths_are_checked_before_the_work(tiny_weights, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    weights = ("--weights", tiny_weights)
    assert "nowhere does not exist" in failure(capsys, "evaluate", "--root", tmp_path / "nowhere", *weights)
    assert "cannot be written" in failure(capsys, "evaluate", "--json", tmp_path / "file" / "out.json", *weights)
    assert "is a folder" in failure(capsys, "evaluate", "--json", tmp_path, *weights)
    assert "cannot be written" in failure(
        capsys, "predict", tiny_weights, "--out", tmp_path / "file" / "pictures", *weights
    )


def test_a_file_may_have_an_equals_sign_in_its_path(mini_root, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.png").write_bytes(data.StreetHazards(mini_root, "test").pairs[0][0].read_bytes())
    assert run("predict", "a=b.png", "--weights", tiny_weights, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a=b_overlay.png").exists()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (settings.InputError("street.jpg is missing"), 1, "error: street.jpg is missing"),
        (PermissionError(13, "Permission denied", "out.json"), 1, "error: [Errno 13] Permission denied: 'out.json'"),
        (KeyboardInterrupt(), 130, "interrupted: "),
        (SystemExit(143), 143, "terminated: "),
    ],
)
def test_what_a_person_causes_ends_as_one_line(capsys, error, code, line):
    def command():
        raise error

    assert __main__.report_errors(command) == code
    told = capsys.readouterr().err
    assert told.startswith(line) and told.count("\n") == 1


def test_a_bug_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        __main__.report_errors(lambda: 1 / 0)


def test_a_wrong_environment_is_one_line():
    command = [sys.executable, "-m", "src", "road", "evaluate"]
    done = subprocess.run(
        command, env=os.environ | {"SEED": "forty"}, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr == "error: SEED='forty': expected an integer\n"

"""The system's settings, its weights, and its command line from data to figures."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import checkpoints, series, settings, system
from src.__main__ import main
from src.images import DataError
from src.series import generated
from src.series.envelope import of_series
from src.synthetic import series_plots, time_series
from src.synthetic.time_series import CLASSES
from tests.series.helpers import THREE, TINY, same, state, write_plots

HEADLINE = ("accuracy", "macro_f1", "precision", "recall", "top2", "ece")
PROVENANCE = ("command", "git_revision", "config", "seed", "data", "protocol", "wall_time", "device")


# ------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    "changes",
    [
        {"flips": ("diagonal",)},
        {"flips": ([],)},
        {"dropout": (0.1, 0.2)},
        {"dropout": (0.1, 0.2, 1.5)},
        {"dropout": (0.1, 0.2, "a")},
        {"size": (120,)},
        {"size": (16, 160)},
        {"size": (64.5, 160)},
        {"width": 0},
        {"folds": 1},
        {"generated": -1},
        {"activation_weight": -0.1},
        {"activation_weight": float("nan")},
        {"classes": ("volatility",)},
        {"classes": ("volatility", "volatility")},
        {"classes": (1, 2)},
        {"patience": 3, "cross_validate": True},
        {"schedule": "plateau", "cross_validate": True},
    ],
)
def test_settings_that_cannot_be_are_named(changes):
    with pytest.raises(settings.InputError, match=f"^{next(iter(changes))}=.*: expected "):
        replace(TINY, **changes)


def test_full_is_the_courses_recipe():
    expected = {
        "dataset": "plots",
        "backbone": "resnet50",
        "size": (224, 224),
        "dropout": (0.3, 0.3, 0.2),
        "epochs": 30,
        "batch_size": 32,
        "optimizer": "adam",
        "lr": 1e-3,
        "schedule": "plateau",
        "flips": ("horizontal",),
        "tta": False,
        "cross_validate": False,
    }
    config = series.Config.full()
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize("config", [series.Config.mini(), series.Config.real(), series.Config.full(), TINY])
def test_a_config_survives_its_checkpoint(config):
    assert series.Config.from_plain(json.loads(json.dumps(config.plain()))) == config


def test_settings_of_old_commands_and_checkpoints_are_understood():
    config = series.Config.mini().override(["backbone=trace_resnet", "average_flips=false", "look_weight=0.5"])
    assert (config.backbone, config.tta, config.activation_weight) == ("envelope_resnet", False, 0.5)


def test_the_config_needs_no_torch():
    code = "import sys, src.series; print({'torch', 'sklearn', 'matplotlib', 'PIL'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=settings.ROOT, text=True) == "set()\n"


# ------------------------------------------------------------------------------------------------- weights
def test_weights_have_names_of_their_own():
    full = series.Config.full()
    names = [config.weights_name for config in (series.Config.real(), series.Config.mini(), full)]
    assert names == ["plots", "mini", "plots_resnet50"]
    assert replace(full, axes=False).weights_name == "plots_resnet50_line"
    assert replace(TINY, classes=THREE).weights_name == "plots_mean_shift_point_anomaly_volatility"


@pytest.mark.parametrize("name", ["mini", "generated", "plots", "plots_folds"])
def test_committed_weights_load(name):
    path = settings.ROOT / "assets/weights/series" / f"{name}.pth"
    trained = system.load(series, path, series.Config.mini())
    config = {"mini": series.Config.mini(), "plots": series.Config.real(), "plots_folds": series.Config.real()}
    assert trained.config == config.get(name, trained.config)
    assert len(trained.model.members) == (5 if name == "plots_folds" else 1) and trained.history


def test_settings_that_contradict_the_checkpoint_are_refused(trained):
    overrides = ["width=4", "flips=horizontal,vertical"]
    assert system.load(series, trained.source, series.Config.mini(), overrides).config == TINY
    with pytest.raises(checkpoints.CheckpointError, match="width: 4 in the file, 8 asked for"):
        system.load(series, trained.source, TINY, ["width=8"])


def test_missing_weights_are_trained_only_if_asked_for(root, project):
    config = replace(TINY, classes=THREE, epochs=1)
    with pytest.raises(checkpoints.CheckpointError, match=r"plots_mean_shift_.*.pth is missing.*\n.*--profile real"):
        system.load_or_train(series, config, root, run_training=False)
    first = system.load_or_train(series, config, root, run_training=True)
    assert first.source == project / "runs/series/plots_mean_shift_point_anomaly_volatility.pth"
    assert same(state(system.load_or_train(series, config, root, run_training=True).model), state(first.model))


def test_the_real_profile_starts_from_generated_series(project):
    command = "series train --profile real --dataset plots --weights assets/weights/series/generated.pth"
    with pytest.raises(checkpoints.CheckpointError, match=command):
        system.load_or_train(series, series.Config.real(), run_training=False, weights=series.PRETRAINED)


# ------------------------------------------------------------------------------------------------- predict
def responsive(trained: system.Trained) -> system.Trained:
    """The same model with statistics of plots and a larger last layer: other plots, other probabilities."""
    model = series.build_model(TINY)
    net, items = model.members[0].train(), generated.draw_series(of_series, generated.epoch_numbers(3)).items
    with torch.no_grad():
        for _ in range(30):
            net(items)
        net.head[-1].weight.mul_(8)
    return replace(trained, model=model.eval())


def test_predict_on_a_plot_and_on_its_numbers(trained, tmp_path):
    """A plot by matplotlib and the CSV of the same series: nearly the same probabilities."""
    files = []
    for number, label in enumerate(THREE):
        one = time_series.generate(label, number, "test")
        files += [tmp_path / f"{label}_plot.png", tmp_path / f"{label}.csv"]
        series_plots.draw(one.values, files[-2])
        time_series.write_csv(one, files[-1])
    rows = system.predict(series, responsive(trained), files, tmp_path)
    assert [row["filename"] for row in rows] == [str(file) for file in files]
    for row in rows:
        shares = row["probabilities"]
        assert list(shares) == list(CLASSES) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(shares, key=shares.get)
    shares = np.array([list(row["probabilities"].values()) for row in rows])
    distances = abs(shares[::2, None] - shares[None, 1::2]).sum(2)  # of every plot from every CSV file
    assert distances.argmin(1).tolist() == [0, 1, 2] and distances.diagonal().max() < 0.5
    assert all((tmp_path / f"{file.stem}_predicted.png").exists() and file.exists() for file in files)
    json.dumps(rows)


def test_predict_says_which_file_is_wrong(trained, root, tmp_path):
    plot = root / "test/volatility/000.png"
    (tmp_path / "torn.png").write_bytes(plot.read_bytes()[:200])
    (tmp_path / "flat.csv").write_text("data\n1\n1\n")
    Image.new("RGB", (790, 590), "white").save(tmp_path / "white.png")
    messages = {
        "torn.png": "torn.png is not a readable image",
        "flat.csv": "flat.csv is constant",
        "white.png": "white.png has no blue line",
        "lost.csv": "lost.csv is no table",
        "lost.png": "lost.png does not exist",
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            series.predict(trained, [plot, tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------- command line
SMALL = ("width=4", "generated=0", "epochs=1", "batch_size=8", "warmup=0", "amp=False", f"classes={','.join(THREE)}")


def run(*arguments) -> int:
    return main([str(argument) for argument in ("series", *arguments)])


def test_mini_data_is_written_and_described(project, monkeypatch):
    monkeypatch.setattr(series_plots, "write_dataset", lambda folder: write_plots(folder, {"train": 1, "val": 1}))
    assert run("data") == 0
    record = json.loads((project / "results/series/mini_distribution.json").read_text())
    assert record["distribution"] == {split: dict.fromkeys(CLASSES, 1) for split in ("train", "val")}
    assert (project / "data/mini/series/train/volatility/000.png").exists()


def test_command_line_from_training_to_figures(project, root, capsys):
    shutil.copytree(root, project / "data/mini/series")
    assert run("train", *SMALL) == 0
    weights = Path(re.search(r"wrote (.*)", capsys.readouterr().out)[1])
    assert weights.name == "mini_mean_shift_point_anomaly_volatility.pth"

    assert run("evaluate", "--weights", weights, "--json", project / "out.json") == 0
    record = json.loads((project / "out.json").read_text())
    assert set(PROVENANCE) <= record.keys() and all(isinstance(record[key], float) for key in HEADLINE)
    assert record["config"]["classes"] == list(THREE) and record["data"]["files"] == record["plots"] == 6
    assert record["command"] == f"python -m src series evaluate --weights DIR/{weights.name} --json DIR/out.json"
    assert record["activation"]["plots"] == 4 and len(record["accuracy_interval"]) == 2
    assert f"accuracy {record['accuracy']:.4f}" in capsys.readouterr().out

    file = root / "test/volatility/000.png"
    assert run("predict", file, "--weights", weights, "--out", project / "pictures") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["filename"] == str(file) and (project / "pictures/000_predicted.png").exists()
    assert run("predict", file.parent, "--weights", weights, "--out", project / "pictures") == 0
    first, *others = json.loads(capsys.readouterr().out)
    assert first["filename"] == str(file) and others and (project / "pictures/001_predicted.png").exists()
    assert first["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)

    assert run("figures", "--weights", weights) == 0
    written = [Path(path) for path in re.findall(r"wrote (.*)", capsys.readouterr().out)]
    names = {path.name for path in written}
    assert names >= {f"mini_{kind}.png" for kind in ("wall", "confusion", "activations", "curves")}
    assert all(path.parent == project / "figures/series" and path.exists() for path in written)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("evaluate",), "weights/series/mini.pth is missing"),
        (("train", "rate=0.1"), "rate=0.1: unknown setting"),
        (("train", "backbone=vgg99"), "backbone='vgg99'"),
        (("train", "classes=1,2"), "classes=(1, 2)"),
        (("train", "folds=None"), "folds=None"),
        (("report",), "series has no report"),
    ],
)
def test_wrong_input_is_named(project, root, capsys, arguments, expected):
    assert run(*arguments, "--root", root) == 1
    assert expected in capsys.readouterr().err

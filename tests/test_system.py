"""What all systems share, on the smallest road model: loading, training behind its flag, records, file names."""

from dataclasses import replace

import pytest
import torch

from src import checkpoints, road, sets, settings, system


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    """Weights, results, figures and runs inside ``tmp_path``."""
    for name in ("WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
        monkeypatch.setattr(settings, f"{name}_DIR", tmp_path / name.lower())
    return tmp_path


@pytest.fixture
def committed(tiny_weights, tiny_config):
    """The tiny road model where the committed one of its config would be."""
    path = system.weights_path(road, tiny_config)
    path.parent.mkdir(parents=True)
    path.write_bytes(tiny_weights.read_bytes())
    return path


def test_paths_follow_the_system_and_its_config(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path / "data")
    assert system.default_root(road, "mini") == tmp_path / "data/mini/road"
    assert system.default_root(road, "camvid_cyclists") == tmp_path / "data/camvid"
    assert system.default_root(sets, "cifar100") == tmp_path / "data/cifar100"
    assert system.weights_path(road, road.Config.real()) == tmp_path / "weights/road/camvid.pth"


def test_weights_are_loaded_and_never_trained_with_the_flag_off(committed, tiny_config, mini_root, folders):
    trained = system.load_or_train(road, tiny_config, mini_root, run_training=False)
    assert trained.source == committed and trained.config == trained.trained_config == tiny_config
    assert trained.calibration["thresholds"] and len(trained.history) == 1
    committed.unlink()
    with pytest.raises(
        checkpoints.CheckpointError, match="(?s)training is off.*python -m src road train --profile mini"
    ):
        system.load_or_train(road, tiny_config, mini_root, run_training=False)
    assert not (folders / "runs").exists()


def test_with_the_flag_on_a_training_is_kept_beside_the_committed_weights(committed, tiny_config, mini_root, folders):
    before = committed.read_bytes()
    longer = replace(tiny_config, epochs=2)
    trained = system.load_or_train(road, longer, mini_root, run_training=True)
    assert trained.source == folders / "runs/road/mini.pth" and len(trained.history) == 2
    assert committed.read_bytes() == before
    again = system.load_or_train(road, longer, mini_root, run_training=True)
    assert again.source == trained.source
    weights = [result.model.state_dict() for result in (trained, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(checkpoints.CheckpointError, match="epochs: 2 in the file, 3 asked for"):
        system.load_or_train(road, replace(longer, epochs=3), mini_root, run_training=True)


def test_a_file_that_cannot_be_loaded_never_becomes_a_training(committed, tiny_config, mini_root, folders):
    committed.write_bytes(committed.read_bytes()[:5000])
    with pytest.raises(checkpoints.CheckpointError, match="mini.pth"):
        system.load_or_train(road, tiny_config, mini_root, run_training=False)
    assert not (folders / "runs").exists()


def test_weights_of_another_system_are_named_as_such(committed):
    with pytest.raises(checkpoints.CheckpointError, match="mini.pth holds no weights of sets but of another system"):
        system.load(sets, committed, sets.Config.mini())


def test_a_record_is_compared_with_committed_weights_alone(committed, tiny_config, mini_root, folders):
    record = {"command": "python -m src road evaluate", "miou": 0.5}
    (folders / "results/road").mkdir(parents=True)
    (folders / "results/road/mini_test.json").write_text('{"command": "python -m src road evaluate", "miou": 0.5}')
    trained = system.load(road, committed, tiny_config)
    assert system.check_against_record(road, trained, {"miou": 0.5001}, "mini_test") == record
    with pytest.raises(settings.InputError, match="miou is 0.5 in the record, 0.6"):
        system.check_against_record(road, trained, {"miou": 0.6}, "mini_test")
    trained.source = folders / "runs/road/mini.pth"
    assert system.check_against_record(road, trained, {"miou": 0.6}, "mini_test") == {"miou": 0.6}


def test_measure_describes_the_data(committed, tiny_config, mini_root):
    metrics, data = system.measure(road, system.load(road, committed, tiny_config), mini_root, None, "val")
    assert metrics["images"] == 4 and data["files"] == 8 and data["dataset"] == "mini" and data["split"] == "val"
    assert len(data["sha256"]) == 64


def test_figures_are_written_under_the_systems_name(committed, tiny_config, mini_root, folders):
    written = system.write_figures(road, system.load(road, committed, tiny_config), mini_root, None)
    assert {path.parent for path in written} == {folders / "figures/road"}
    assert all(path.name.startswith("mini_") and path.stat().st_size > 1000 for path in written)

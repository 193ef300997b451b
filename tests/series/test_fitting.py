"""Training: what is written, kill and resume, folds that are held out, and where networks start from."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src import checkpoints, series, settings, system, training
from src.series import data, evaluation, fitting, generated
from src.series.batches import loss
from src.series.envelope import of_series
from src.series.model import fit_temperature
from src.synthetic.time_series import CLASSES
from tests.series.helpers import THREE, TINY, same, state


def test_training_writes_a_checkpoint_of_the_best_epoch(root, trained):
    assert list(trained.history) == ["val"] and [row["epoch"] for row in trained.history["val"]] == [1, 2]
    assert all(math.isfinite(row["loss"]) and {"accuracy", "nll"} <= row.keys() for row in trained.history["val"])
    content = checkpoints.load(trained.source)
    assert content["config"] == TINY.plain()
    assert content["extras"] == {"history": trained.history, "classes": list(CLASSES), "members": 1}
    val = series.datasets(TINY, root)["val"]
    validated = evaluation.validate(trained.model.members[0], val, TINY.flips, TINY)
    assert validated["accuracy"] == max(row["accuracy"] for row in trained.history["val"])
    logs = trained.model.log_probabilities(val.items)
    assert float(trained.model.temperature) == pytest.approx(fit_temperature(logs, val.labels), rel=1e-6) != 1
    loaded = system.load(series, trained.source, TINY)
    assert same(state(loaded.model), state(trained.model)) and not loaded.model.members[0].training
    assert (loaded.config, loaded.history) == (TINY, trained.history)


def test_training_learns_from_generated_series(tmp_path, monkeypatch):
    """Trends and bursts can be told apart by a few hundred series."""
    monkeypatch.setattr(data, "DRAWN", 40)
    config = replace(
        TINY,
        dataset="generated",
        classes=("deterministic_trend", "volatility"),
        generated=80,
        epochs=3,
        batch_size=16,
        lr=1e-2,
        activation_weight=0.3,
    )
    trained = series.train(config, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    metrics = series.evaluate(trained)
    assert metrics["accuracy"] > 0.85 and trained.history["val"][-1]["loss"] < trained.history["val"][0]["loss"]
    assert "activation" not in metrics and sum(metrics["per_class"][name]["plots"] for name in config.classes) == 80


def test_attention_learns_where_events_are():
    """The one that is shown where they are learns it; the other's attention is anywhere."""
    config = replace(TINY, classes=("collective_anomaly", "mean_shift"), flips=())
    plots = generated.draw_series(of_series, generated.epoch_numbers(40), config.classes)
    batch = {"items": plots.items, "labels": plots.labels, "events": evaluation.event_columns(plots.known)}
    rates = {}
    for weight in (0.0, 1.0):
        net = series.build_model(replace(config, seed=0)).members[0]
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss(net, batch, replace(config, activation_weight=weight)).backward()
            optimizer.step()
        known = evaluation.measure_known(net, torch.eye(2)[plots.labels], plots, plots.known)
        rates[weight] = known["activation"]["hit_rate"]
    assert rates[1.0] > rates[0.0] + 0.2 and rates[1.0] > 0.5


def test_pictures_are_trained_on(root, tmp_path):
    config = replace(
        TINY,
        backbone="squeezenet1_0",
        size=(48, 64),
        epochs=1,
        classes=THREE,
        batch_size=6,
        activation_weight=0.1,
    )
    trained = series.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    metrics = series.evaluate(trained, root)
    assert metrics["plots"] == 6 and 0 <= metrics["activation"]["hit_rate"] <= 1
    rows = series.predict(trained, [root / "test/volatility/000.png"], tmp_path / "pictures")
    assert list(rows[0]["probabilities"]) == list(THREE)


# ----------------------------------------------------------------------------------------- kill and resume
def without_time(history: list[dict]) -> list[dict]:
    return [{**row, "seconds": 0} for row in history]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_equals_an_unbroken_one(root, tmp_path, monkeypatch, streamed):
    """On plots of a folder, and on series that processes draw ahead."""
    config = replace(TINY, classes=THREE, generated=4 if streamed else 0)
    monkeypatch.setattr(generated, "FEW", 10 if streamed else 1000)
    unbroken = series.train(config, root, run_dir=tmp_path / "unbroken", out=tmp_path / "unbroken.pth")
    validate = evaluation.validate

    def killed(*arguments):
        if (tmp_path / "broken/last.pth").exists():
            raise KeyboardInterrupt
        return validate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "validate", killed)
        series.train(config, root, run_dir=tmp_path / "broken", out=tmp_path / "broken.pth")
    assert not (tmp_path / "broken.pth").exists()
    resumed = series.train(config, root, run_dir=tmp_path / "broken", out=tmp_path / "broken.pth")
    assert same(state(resumed.model), state(unbroken.model))
    assert without_time(resumed.history["val"]) == without_time(unbroken.history["val"])


def test_a_run_of_another_config_or_of_other_plots_is_not_resumed(root, tmp_path, trained):
    run, out = trained.source.parent / "run", tmp_path / "out.pth"
    with pytest.raises(checkpoints.CheckpointError, match="last.pth was made with another config:\n  lr: 0.003 in the"):
        series.train(replace(TINY, lr=5e-4), root, run_dir=run, out=out)
    shutil.copytree(root / "train", tmp_path / "copy/train")
    shutil.copy(root / "train/volatility/000.png", tmp_path / "copy/train/volatility/001.png")
    with pytest.raises(checkpoints.CheckpointError, match="run holds a run on other data, .*: move .* away"):
        series.train(TINY, tmp_path / "copy", run_dir=run, out=out)


# --------------------------------------------------------------------------------------- cross-validation
def test_cross_validation_writes_the_folds_and_the_network_of_all(crossed):
    of_all, of_folds = crossed
    assert len(of_folds.model.members) == 5 and len(of_all.model.members) == 1
    assert list(of_folds.history) == [f"fold {k}" for k in range(5)]
    assert list(of_all.history) == [*of_folds.history, "all"]
    assert all(len(rows) == TINY.epochs for rows in of_all.history.values())
    assert "accuracy" in of_all.history["fold 4"][0] and "accuracy" not in of_all.history["all"][0]
    assert float(of_all.model.temperature) == float(of_folds.model.temperature)


def test_nothing_is_chosen_and_the_last_epoch_is_kept(crossed):
    of_all, of_folds = crossed
    runs = [*(f"fold_{k}" for k in range(5)), "all"]
    for run, member in zip(runs, [*of_folds.model.members, *of_all.model.members], strict=True):
        last = checkpoints.load(of_all.source.parent / "run" / run / "last.pth")
        assert last["state"]["epoch"] == TINY.epochs and same(last["weights"].values(), state(member))


def test_no_network_is_trained_on_plots_that_are_held_out(root, tmp_path, monkeypatch):
    seen = []

    def noted(config, plots, held_out, start, run_dir, fingerprint):
        seen.append((plots.names, held_out.names if held_out else ()))
        return series.build_net(config), []

    monkeypatch.setattr(fitting, "fit", noted)
    for config in (replace(TINY, cross_validate=True), TINY):
        series.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    plots = series.read_split(TINY, root, "train")
    fold = data.folds(plots.labels, 5, TINY.seed)
    parts = [tuple(plots.subset(torch.where(part)[0]).names for part in (fold != k, fold == k)) for k in range(5)]
    assert seen == [*parts, (plots.names, ()), parts[0]]


# ------------------------------------------------------------------------------------------ where it starts
@pytest.fixture
def stopped(monkeypatch):
    """Training that stops before its first step, so that the weights it starts from can be seen."""
    monkeypatch.setattr(training, "fit", lambda *arguments, **options: [])


def started(config: series.Config, root: Path, tmp_path: Path, weights: Path) -> dict[str, torch.Tensor]:
    trained = series.train(config, root, weights=weights, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    return trained.model.members[0].state_dict()


def test_every_network_starts_from_the_same_checkpoint(root, tmp_path, trained, stopped):
    expected = state(trained.model.members[0])
    assert same(started(replace(TINY, epochs=9, lr=1e-4), root, tmp_path, trained.source).values(), expected)
    config = replace(TINY, cross_validate=True)
    assert same(started(config, root, tmp_path, trained.source).values(), expected)
    for member in system.load(series, tmp_path / "out_folds.pth", config).model.members:
        assert same(state(member), expected)


def test_the_last_layer_is_not_taken_from_other_classes(root, tmp_path, trained, stopped):
    config = replace(TINY, classes=THREE)
    start, fresh = started(config, root, tmp_path, trained.source), series.build_model(config).members[0].state_dict()
    other = trained.model.members[0].state_dict()
    taken = {name for name in start if start[name].shape == other[name].shape and torch.equal(start[name], other[name])}
    assert start.keys() - taken == {"head.9.weight", "head.9.bias"}
    assert torch.equal(start["head.9.weight"], fresh["head.9.weight"])


@pytest.mark.parametrize("changes", [{"width": 6}, {"backbone": "squeezenet1_0", "size": (32, 32), "classes": THREE}])
def test_a_checkpoint_that_does_not_fit_is_refused(root, tmp_path, trained, changes):
    with pytest.raises(settings.InputError, match="tiny.pth does not fit the model"):
        started(replace(TINY, **changes), root, tmp_path, trained.source)

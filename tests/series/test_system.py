"""The system's public functions and its command line on few plots: data, folds, training, evaluation, prediction, errors."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import checkpoints, series, settings, training
from src.__main__ import main
from src.series import data, evaluation
from src.synthetic import series_plots, time_series
from src.synthetic.time_series import CLASSES
from tests.series.systems import TINY, Told, on_the_cpu, pictures, traces, write_plots  # noqa: F401
from tests.sets.conftest import redirect

THREE = ("mean_shift", "point_anomaly", "volatility")
HEADLINE = ("accuracy", "macro_f1", "precision", "recall", "top2", "ece")
PROVENANCE = ("command", "git_revision", "config", "seed", "data", "protocol", "wall_time", "device")
COUNTS = {"train": 5, "test": 2}  # plots of a class


@pytest.fixture(autouse=True)
def house(monkeypatch, tmp_path) -> Path:
    """A house of this test's own: every folder that is written to lies in it. Series are drawn in this process."""
    redirect(monkeypatch, tmp_path / "house")
    monkeypatch.setattr(data, "pool", partial(data.pool, workers=1))
    return tmp_path / "house"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """train and test of all classes, with what the generator knows of them, and no val."""
    folder = tmp_path_factory.mktemp("data") / "plots"
    time_series.write_metadata(write_plots(folder, COUNTS), folder / "metadata.json")
    return folder


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> series.Trained:
    folder = tmp_path_factory.mktemp("trained")
    return series.train(TINY, root, run_dir=folder / "run", out=folder / "tiny.pth")


CROSSED = replace(TINY, cross_validate=True, lr=1e-2)


@pytest.fixture(scope="module")
def crossed(root, tmp_path_factory) -> tuple[series.Trained, series.Trained]:
    """The network of all plots, and those of the folds."""
    folder = tmp_path_factory.mktemp("crossed")
    whole = series.train(CROSSED, root, run_dir=folder / "run", out=folder / "out.pth")
    return whole, series.load(folder / "out_folds.pth", CROSSED)


@pytest.fixture
def stopped(monkeypatch):
    """Training that stops before its first step, so that the weights it starts from can be seen."""
    monkeypatch.setattr(training, "fit", lambda *given, **options: [])


def state(model) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(first, second) -> bool:
    return all(map(torch.equal, first, second))


def named(part: data.Labelled) -> bool:
    """Whether every label is that of the class that the plot lies under."""
    return [part.classes[k] for k in part.labels.tolist()] == [name.split("/")[0] for name in part.names]


# --------------------------------------------------------------------------------------------------- data
def test_without_a_validation_split_the_first_fold_of_train_is_one(root):
    parts = series.datasets(TINY, root)
    assert {split: len(part) for split, part in parts.items()} == {"train": 36, "val": 9, "test": 18}
    assert not set(parts["train"].names) & set(parts["val"].names)
    for part in parts.values():
        assert part.classes == CLASSES and named(part) and part.items.shape[1:] == (2, 640)
        assert len(set(torch.bincount(part.labels, minlength=9).tolist())) == 1


def test_a_validation_split_on_disk_is_taken(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    shutil.move(tmp_path / "copy/test", tmp_path / "copy/val")
    parts = series.datasets(TINY, tmp_path / "copy")
    assert {split: len(part) for split, part in parts.items()} == {"train": 45, "val": 18}
    assert {split: len(part) for split, part in series.datasets(TINY, tmp_path / "copy", ("train",)).items()} == {
        "train": 45}  # fmt: skip


def test_test_alone_needs_no_train(root):
    assert list(series.datasets(TINY, root, ("test",))) == ["test"]


def test_folds_follow_the_seed(root):
    names = [series.datasets(replace(TINY, seed=seed, classes=THREE), root)["val"].names for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_pictures_are_read_for_networks_of_pictures(root):
    config = replace(TINY, backbone="resnet18", size=(60, 80), classes=THREE)
    whole, line = (series.datasets(replace(config, axes=axes), root)["test"].items for axes in (True, False))
    assert whole.shape == line.shape == (6, 3, 60, 80) and whole.dtype == torch.uint8
    assert whole.float().mean() < line.float().mean() and line[:, :, -5:].min() == 255


def test_classes_may_be_chosen(root):
    chosen = THREE[::-1]
    parts = series.datasets(replace(TINY, classes=chosen), root)
    assert all(part.classes == chosen and named(part) for part in parts.values()) and len(parts["test"]) == 6
    with pytest.raises(settings.InputError, match="no class unicorn"):
        series.datasets(replace(TINY, classes=("volatility", "unicorn")), root)


@pytest.fixture
def some(root, tmp_path) -> Path:
    """A copy with three of the classes alone."""
    for split in COUNTS:
        for label in THREE:
            shutil.copytree(root / split / label, tmp_path / "some" / split / label)
    return tmp_path / "some"


def test_a_folder_that_lacks_classes_has_the_same_labels(some):
    parts = series.datasets(TINY, some)
    assert all(part.classes == CLASSES and named(part) for part in parts.values())


def test_classes_of_ones_own_are_to_be_named(some, tmp_path):
    for split in COUNTS:
        (some / split / "volatility").rename(some / split / "bursts")
    with pytest.raises(settings.InputError, match="some holds classes that are not known: bursts; .*classes="):
        series.train(TINY, some, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    config = replace(TINY, epochs=1, classes=("bursts", "mean_shift"))
    trained = series.train(config, some, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    found = series.measure(series.load(trained.source, TINY), some, None, "test")[0]
    assert set(found["per_class"]) == {"bursts", "mean_shift"} and found["chance"] == 0.5


def test_generated_data_is_on_no_disk(monkeypatch):
    monkeypatch.setattr(series, "DRAWN", 4)
    config = replace(TINY, dataset="generated", classes=THREE)
    parts = series.datasets(config)
    assert {split: len(part) for split, part in parts.items()} == {"train": 12, "val": 12, "test": 12}
    for part in parts.values():
        assert part.classes == THREE and named(part) and len(part.known) == 12
    items = [{item.numpy().tobytes() for item in part.items} for part in parts.values()]
    assert len(set.union(*items)) == 36
    other = series.datasets(replace(config, seed=1))
    assert not torch.equal(other["val"].items, parts["val"].items)


def test_a_root_without_train_is_named(root, house):
    for door in (series.datasets, series.train):
        with pytest.raises(data.DataError, match=f"{root}/test has no train/<class> folders"):
            door(TINY, root / "test")
    with pytest.raises(data.DataError, match=f"{house}/data/series_plots holds neither train/<class>"):
        series.make_data(TINY)


def test_mini_data_is_written_and_described(house, monkeypatch):
    monkeypatch.setattr(series_plots, "write_dataset", lambda folder: write_plots(folder, {"train": 1, "val": 1}))
    series.make_data(series.Config.mini())
    record = json.loads((house / "results/series/mini_distribution.json").read_text())
    assert record["distribution"] == {split: dict.fromkeys(CLASSES, 1) for split in ("train", "val")}
    assert (house / "data/mini/series/train/volatility/000.png").exists()


# ------------------------------------------------------------------------------------------------ batches
def numbered(count: int) -> data.Labelled:
    labels = torch.arange(count) % 9
    known = tuple({"length": 40, "events": ((i % 40, i % 40 + 1),)} for i in range(count))
    return data.Labelled(torch.arange(count)[:, None], labels, CLASSES, tuple(map(str, range(count))), known)


def batches_of(count: int = 50, epoch: int = 0, **changes) -> list[dict]:
    batches = series.Batches(lambda epoch: numbered(count), count, replace(TINY, **changes))
    batches.set_epoch(epoch)
    found = list(batches)
    assert len(found) == len(batches)
    return found


def order(batches: list[dict]) -> list[int]:
    return torch.cat([batch["items"][:, 0] for batch in batches]).tolist()


def test_batches_are_shuffled_anew_each_epoch():
    first = batches_of()
    assert len(first) == 6 and {len(batch["labels"]) for batch in first} == {8} and len(set(order(first))) == 48
    assert order(batches_of()) == order(first) != sorted(order(first))
    assert order(batches_of(epoch=1)) != order(first) and order(batches_of(seed=1)) != order(first)
    for batch in first:
        assert torch.equal(batch["labels"], batch["items"][:, 0] % 9)
        assert torch.equal(batch["where"].argmax(1), batch["items"][:, 0] % 40)


def test_processes_share_a_batch(monkeypatch):
    alone, ranks = batches_of(), []
    for rank in (0, 1):
        monkeypatch.setattr(training, "start_distributed", lambda rank=rank: (rank, 2))
        ranks.append(batches_of())
    for batch, first, second in zip(alone, *ranks, strict=True):
        assert sorted(order([first]) + order([second])) == sorted(order([batch])) and len(order([first])) == 4
    with pytest.raises(settings.InputError, match="batch_size=7 does not divide over 2 processes"):
        batches_of(batch_size=7)


def test_a_batch_must_fit_the_plots():
    with pytest.raises(settings.InputError, match="50 training samples do not fill one batch of 51"):
        batches_of(batch_size=51)


def test_series_are_drawn_anew_for_every_epoch():
    config = replace(TINY, generated=3, classes=THREE)
    names = [series.drawn(config, epoch).names for epoch in (0, 0, 1)]
    assert names[0] == names[1] and not set(names[0]) & set(names[2]) and len(names[0]) == 9
    assert min(int(name.split("/")[1]) for name in names[0] + names[2]) >= data.FIRST_STREAMED


def test_the_loss_by_hand():
    logits, looks = torch.randn(4, 9), torch.randn(4, 40).log_softmax(1)
    where = torch.zeros(4, 40)
    where[0, 7] = where[2, 3] = 1
    labels = torch.tensor([0, 3, 8, 3])
    batch = {"items": traces(4), "labels": labels, "where": where}
    plain = -logits.log_softmax(1)[range(4), labels].mean()
    away = -(looks[0, 7] + looks[2, 3]) / 4
    still = replace(TINY, flips=())
    assert torch.allclose(series.loss(lambda items: (logits, looks), batch, still), plain)
    looking = replace(still, activation_weight=0.5)
    assert torch.allclose(series.loss(lambda items: (logits, looks), batch, looking), plain + 0.5 * away)
    assert torch.allclose(series.loss(lambda items: (logits, None), batch, looking), plain)


def test_the_loss_is_of_flipped_items():
    items, shown = pictures(9), []
    batch = {"items": items, "labels": torch.arange(9), "where": torch.zeros(9, 40)}

    def net(given):
        shown.append(given)
        return 100 * torch.eye(9), None

    torch.manual_seed(0)
    assert float(series.loss(net, batch, replace(TINY, flips=()))) < 1e-3
    series.loss(net, batch, TINY)
    assert torch.equal(shown[0], items) and not torch.equal(shown[1], items)


# --------------------------------------------------------------------------------------------------- train
def test_training_writes_a_checkpoint_of_the_best_epoch(root, trained):
    assert list(trained.history) == ["val"] and [row["epoch"] for row in trained.history["val"]] == [1, 2]
    assert all(math.isfinite(row["loss"]) and {"accuracy", "nll"} <= row.keys() for row in trained.history["val"])
    content = checkpoints.load(trained.source)
    assert content["config"] == TINY.plain()
    assert content["extras"] == {"history": trained.history, "classes": list(CLASSES), "members": 1}
    found = evaluation.validate(trained.model.members[0], series.datasets(TINY, root)["val"], TINY.flips, TINY)
    assert found["accuracy"] == max(row["accuracy"] for row in trained.history["val"])
    loaded = series.load(trained.source, TINY)
    assert same(state(loaded.model), state(trained.model)) and loaded.classes == CLASSES
    assert (loaded.config, loaded.history) == (TINY, trained.history) and not loaded.model.members[0].training
    assert not same(state(series.build_model(TINY)), state(trained.model))


def test_the_temperature_suits_the_validation_plots(root, trained):
    val = series.datasets(TINY, root)["val"]
    logs = trained.model.log_probabilities(val.items)
    assert float(trained.model.temperature) == pytest.approx(series.fit_temperature(logs, val.labels), rel=1e-6)
    assert float(trained.model.temperature) != 1


def test_training_learns(tmp_path, monkeypatch):
    """Trends and bursts can be told apart by a few hundred series."""
    monkeypatch.setattr(series, "DRAWN", 40)
    config = replace(TINY, dataset="generated", classes=("deterministic_trend", "volatility"), generated=80, epochs=3,
                     batch_size=16, lr=1e-2, activation_weight=0.3)  # fmt: skip
    trained = series.train(config, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    found = series.evaluate(config, trained.model)
    assert found["accuracy"] > 0.85 and trained.history["val"][-1]["loss"] < trained.history["val"][0]["loss"]
    assert "activation" not in found and sum(found["per_class"][name]["plots"] for name in config.classes) == 80


def test_attention_learns_to_look_at_events():
    """The one that is shown where they are looks there; the other looks anywhere."""
    config = replace(TINY, dataset="generated", classes=("collective_anomaly", "mean_shift"), lr=1e-2)
    found = data.pool(series.traces.of_series, 40, config.classes)
    where, rates = evaluation.places(found.known), {}
    for weight in (0.0, 1.0):
        net = series.build_net(replace(config, seed=0))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            batch = {"items": found.items, "labels": found.labels, "where": where}
            series.loss(net, batch, replace(config, flips=(), activation_weight=weight)).backward()
            optimizer.step()
        known = evaluation.measure_known(net, torch.eye(2)[found.labels], found, found.known)
        rates[weight] = known["activation"]["hit_rate"]
    assert rates[1.0] > rates[0.0] + 0.2 and rates[1.0] > 0.5


def test_a_resumed_run_equals_an_unbroken_one(root, tmp_path, trained, monkeypatch):
    validate = evaluation.validate

    def killed(*given):
        if (tmp_path / "broken/last.pth").exists():
            raise KeyboardInterrupt
        return validate(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "validate", killed)
        series.train(TINY, root, run_dir=tmp_path / "broken", out=tmp_path / "broken.pth")
    assert not (tmp_path / "broken.pth").exists()
    resumed = series.train(TINY, root, run_dir=tmp_path / "broken", out=tmp_path / "broken.pth")
    assert same(state(resumed.model), state(trained.model))
    assert [{**row, "seconds": 0} for row in resumed.history["val"]] == [
        {**row, "seconds": 0} for row in trained.history["val"]]  # fmt: skip


def test_a_run_of_another_config_is_not_resumed(root, tmp_path, trained):
    with pytest.raises(checkpoints.CheckpointError, match="last.pth was made with another config:\n  lr: 0.003 in the"):
        series.train(replace(TINY, lr=5e-4), root, run_dir=trained.source.parent / "run", out=tmp_path / "out.pth")


def test_a_run_that_has_not_ended_is_not_loaded(trained):
    with pytest.raises(checkpoints.CheckpointError, match="best.pth is of a run that has not ended"):
        series.load(trained.source.parent / "run/best.pth", TINY)


def test_pictures_are_trained_on(root, tmp_path):
    config = replace(TINY, backbone="squeezenet1_1", size=(48, 64), epochs=1, classes=THREE, batch_size=6,
                     activation_weight=0.1)  # fmt: skip
    trained = series.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    found = series.measure(trained, root, None, "test")[0]
    assert found["plots"] == 6 and 0 <= found["activation"]["hit_rate"] <= 1
    rows = series.predict(trained, [root / "test/volatility/000.png"], tmp_path / "pictures")
    assert list(rows[0]["probabilities"]) == list(THREE)


# --------------------------------------------------------------------------------------- cross-validation
def test_cross_validation_writes_the_folds_and_the_whole(crossed):
    whole, folds = crossed
    assert len(folds.model.members) == 5 and len(whole.model.members) == 1
    assert list(folds.history) == [f"fold {k}" for k in range(5)] and list(whole.history) == [*folds.history, "all"]
    assert all(len(rows) == CROSSED.epochs for rows in whole.history.values())
    assert "accuracy" in whole.history["fold 4"][0] and "accuracy" not in whole.history["all"][0]
    assert float(whole.model.temperature) == float(folds.model.temperature)
    assert same(state(series.load(whole.source, CROSSED).model), state(whole.model))


def test_nothing_is_chosen_and_the_last_epoch_is_kept(crossed):
    whole, folds = crossed
    runs = [*(f"fold_{k}" for k in range(5)), "all"]
    for run, member in zip(runs, [*folds.model.members, *whole.model.members], strict=True):
        last = checkpoints.load(whole.source.parent / "run" / run / "last.pth")
        assert last["state"]["epoch"] == CROSSED.epochs and same(last["weights"].values(), state(member))


def test_no_network_learns_from_plots_that_are_held_out(root, tmp_path, monkeypatch):
    seen = []

    def noted(found, held_out, *, config, start, run_dir):
        seen.append((found.names, held_out.names if held_out else ()))
        return start(), []

    monkeypatch.setattr(series, "fit", noted)
    for config in (CROSSED, TINY):
        series.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    plots = data.read_series(root, "train", series.view_of(CROSSED))
    fold = data.folds(plots.labels, 5, CROSSED.seed)
    parts = [tuple(plots.subset(chosen.nonzero()[:, 0]).names for chosen in (fold != k, fold == k)) for k in range(5)]
    assert seen == [*parts, (plots.names, ()), parts[0]]


def test_each_fold_is_measured_by_the_network_that_left_it_out(root, crossed):
    """What the folds' histories say of their last epoch is what an evaluation finds: of every plot once."""
    whole, folds = crossed
    found, described, _ = series.measure(folds, root, None, "val")
    last = [folds.history[f"fold {k}"][-1]["accuracy"] for k in range(5)]
    assert found["plots"] == 45 and found["accuracy"] == pytest.approx(np.mean(last))
    assert described["split"] == "val" and described["files"] == 45
    plots = data.read_series(root, "train", series.view_of(CROSSED))
    logs = evaluation.out_of_fold(folds.model, plots, data.folds(plots.labels, 5, CROSSED.seed))
    assert float(whole.model.temperature) == pytest.approx(series.fit_temperature(logs, plots.labels), rel=1e-6)


def test_the_network_of_all_plots_has_no_validation_plots(root, crossed):
    with pytest.raises(settings.InputError, match=r"out.pth has learnt from all training plots: evaluate --split test"):
        series.measure(crossed[0], root, None, "val")
    assert series.measure(crossed[0], root, None, "test")[0]["plots"] == 18


def test_plots_of_another_folder_are_new_to_all(root, crossed, tmp_path):
    """Of the model's own data set alone did folds leave plots out."""
    shutil.copytree(root / "test", tmp_path / "other")
    for trained in crossed:
        found, described, _ = series.measure(trained, tmp_path / "other", "folder", "val")
        expected = series.measure(trained, root, None, "test")[0]
        assert described["files"] == 18 and found == {key: expected[key] for key in found}


def test_plots_of_a_validation_split_of_their_own_are_new_to_all(root, crossed, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    shutil.copytree(root / "test", tmp_path / "copy/val")
    (tmp_path / "copy/metadata.json").unlink()
    for trained in crossed:
        val, test = (series.measure(trained, tmp_path / "copy", None, split)[0] for split in ("val", "test"))
        assert val == test and val["plots"] == 18


@pytest.mark.parametrize("changes", [{"patience": 3}, {"schedule": "plateau"}])
def test_without_plots_to_choose_by_nothing_is_stopped_early(changes):
    with pytest.raises(settings.InputError, match="patience="):
        replace(CROSSED, **changes)


# ------------------------------------------------------------------------------------------ where it starts
def started(config: series.Config, root: Path, tmp_path: Path, weights: Path) -> dict[str, torch.Tensor]:
    found = series.train(config, root, weights=weights, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    return found.model.members[0].state_dict()


def test_a_checkpoint_may_be_started_from(root, tmp_path, trained, stopped):
    found = started(replace(TINY, epochs=9, lr=1e-4), root, tmp_path, trained.source)
    assert same(found.values(), state(trained.model.members[0]))


def test_every_fold_starts_from_the_same_weights(root, tmp_path, trained, stopped):
    series.train(CROSSED, root, weights=trained.source, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    for member in series.load(tmp_path / "out_folds.pth", CROSSED).model.members:
        assert same(state(member), state(trained.model.members[0]))


def test_the_last_layer_is_not_taken_from_other_classes(root, tmp_path, trained, stopped):
    config = replace(TINY, classes=THREE)
    found, fresh = started(config, root, tmp_path, trained.source), series.build_model(config).members[0].state_dict()
    other = trained.model.members[0].state_dict()
    taken = {name for name in found if found[name].shape == other[name].shape and torch.equal(found[name], other[name])}
    assert found.keys() - taken == {"head.9.weight", "head.9.bias"}
    assert torch.equal(found["head.9.weight"], fresh["head.9.weight"])


@pytest.mark.parametrize("changes", [{"width": 6}, {"backbone": "squeezenet1_1", "size": (32, 32), "classes": THREE}])
def test_a_checkpoint_that_does_not_fit_is_refused(root, tmp_path, trained, stopped, changes):
    with pytest.raises(checkpoints.CheckpointError, match="tiny.pth does not fit the model"):
        started(replace(TINY, **changes), root, tmp_path, trained.source)


# ---------------------------------------------------------------------------------------- load, load or train
def test_settings_that_contradict_the_checkpoint_are_refused(trained):
    assert series.load(trained.source, series.Config.mini(), ["width=4", "flips=horizontal,vertical"]).config == TINY
    with pytest.raises(checkpoints.CheckpointError, match="width: 4 in the file, 8 asked for"):
        series.load(trained.source, TINY, ["width=8"])


def test_missing_weights_are_trained_only_if_asked_for(root, house):
    config = replace(TINY, classes=THREE, epochs=1)
    with pytest.raises(checkpoints.CheckpointError, match=r"plots_mean_shift_.*.pth is missing.*\n.*--profile real"):
        series.load_or_train(config, root, run_training=False)
    first = series.load_or_train(config, root, run_training=True)
    assert first.source == house / "weights/series/plots_mean_shift_point_anomaly_volatility.pth"
    assert same(state(series.load_or_train(config, root, run_training=False).model), state(first.model))


def test_the_real_profile_starts_from_generated_series(house, monkeypatch):
    config, given = series.Config.real(), []
    command = "series train --profile real --dataset plots --weights assets/weights/series/generated.pth"
    with pytest.raises(checkpoints.CheckpointError, match=command):
        series.load_or_train(config, run_training=False)
    assert series.load(series.PRETRAINED, config).classes == CLASSES
    monkeypatch.setattr(series, "train", lambda *_, weights: given.append(weights))
    for asked in (config, replace(config, cross_validate=False)):
        with pytest.raises(checkpoints.CheckpointError, match="plots.pth is not a file"):
            series.load_or_train(asked, run_training=True)
    assert given == [series.PRETRAINED, None]


def test_weights_have_names_of_their_own(house):
    assert series.weights_path(series.Config.real()) == house / "weights/series/plots.pth"
    assert series.weights_path(series.Config.mini()).name == "mini.pth"
    full = series.Config.full()
    assert series.weights_path(full).name == "plots_resnet50.pth"
    assert series.weights_path(replace(full, axes=False)).name == "plots_resnet50_line.pth"


# ------------------------------------------------------------------------------------------------ evaluate
def test_evaluation_of_test_and_of_class_folders(root, trained):
    """Where a folder holds the classes directly, every plot belongs to the split named."""
    part, described, protocol = series.measure(trained, root, None, "test")
    assert part["plots"] == described["files"] == 18 and set(part["per_class"]) == set(CLASSES)
    assert protocol == evaluation.PROTOCOL and described["dataset"] == "plots"
    assert part["temperature"] == float(trained.model.temperature)
    for split in ("test", "val"):
        direct = series.measure(trained, root / "test", "folder", split)[0]
        assert direct == {key: part[key] for key in direct} and part.keys() - direct.keys() == {"lengths", "activation"}


def test_the_door_evaluates_as_the_command_does(root, trained):
    found = series.measure(trained, root, None, "test")[0]
    assert series.evaluate(TINY, trained.model, root) == found


def test_an_untrained_model_guesses_the_same_twice(root):
    """Nothing of training is on in an evaluation: no dropout, no statistics of batches."""
    model = series.build_model(TINY).train()
    first = series.evaluate(TINY, model, root)
    assert series.evaluate(TINY, model, root) == first and first["accuracy"] < 0.5


def test_validation_tells_hits_where_events_are_known(monkeypatch):
    monkeypatch.setattr(series, "DRAWN", 2)
    net = series.build_model(TINY).members[0]
    for classes, told in ((("point_anomaly", "volatility"), True), (("stochastic_trend", "volatility"), False)):
        part = series.datasets(replace(TINY, dataset="generated", classes=classes))["val"]
        net.head[-1] = torch.nn.Linear(256, 2)
        assert ("hit_rate" in evaluation.validate(net, part, (), TINY)) == told


def test_validation_plots_are_those_held_out(root, trained):
    """By their names the metadata knows them as plots of train, of which they are a fold."""
    found, described, _ = series.measure(trained, root, None, "val")
    assert found["plots"] == 9 and described["files"] == 45 and "activation" in found
    assert found["accuracy"] == max(row["accuracy"] for row in trained.history["val"])


def test_generated_plots_know_their_events(trained, monkeypatch):
    monkeypatch.setattr(series, "DRAWN", 3)
    found, described, _ = series.measure(trained, None, "generated", "test")
    assert found["plots"] == 27 and described == {"dataset": "generated", "split": "test"}
    assert set(found["activation"]) >= {"hit_rate", "chance", "point_anomaly"} and found["lengths"]


def test_unknown_classes_are_refused(root, trained, tmp_path):
    shutil.copytree(root / "test", tmp_path / "copy")
    (tmp_path / "copy/volatility").rename(tmp_path / "copy/zebra")
    with pytest.raises(settings.InputError, match="copy holds classes that are not known: zebra; known are collective"):
        series.measure(trained, tmp_path / "copy", "folder", "test")


def test_a_folder_may_lack_classes(root, trained, some):
    found = series.measure(trained, some, "folder", "test")[0]
    whole = series.measure(trained, root, None, "test")[0]
    assert set(found["per_class"]) == set(THREE) and found["plots"] == 6 and len(found["confusion"]) == 9
    for name in THREE:
        assert found["confusion"][CLASSES.index(name)] == whole["confusion"][CLASSES.index(name)]


def test_a_model_of_some_classes_sees_only_theirs(root, tmp_path):
    config = replace(TINY, classes=THREE, epochs=1)
    trained = series.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    found, described, _ = series.measure(trained, root, None, "test")
    assert found["plots"] == described["files"] == 6 and len(found["confusion"]) == 3
    assert series.evaluate(config, trained.model, root) == found


# ------------------------------------------------------------------------------------------------- predict
def telling(trained: series.Trained) -> series.Trained:
    """The same model with statistics of plots and a last layer that speaks up: other plots, other probabilities."""
    model = series.build_model(TINY)
    net, found = model.members[0].train(), data.pool(series.traces.of_series, 3).items
    with torch.no_grad():
        for _ in range(30):
            net(found)
        net.head[-1].weight.mul_(8)
    return replace(trained, model=model.eval())


def test_folders_of_numbers_are_evaluated(trained, tmp_path):
    """Class folders of CSV files, of three classes of nine: what the network says of their numbers, counted."""
    right, series_of = 0, {label: [time_series.generate(label, n, "test") for n in range(3)] for label in THREE}
    for label, own in series_of.items():
        for number, one in enumerate(own):
            time_series.write_csv(one, tmp_path / label / f"{number}.csv")
            found = trained.model.probabilities(torch.tensor(series.view_of(trained.config)[1](one.values))[None])
            right += trained.classes[int(found.argmax())] == label
    metrics, described, _ = series.measure(trained, tmp_path, "folder", "test")
    assert metrics["plots"] == described["files"] == 9 and metrics["accuracy"] == pytest.approx(right / 9)


def test_predict_on_a_plot_and_on_its_numbers(trained, tmp_path):
    """A plot by matplotlib and the CSV of the same series: nearly the same probabilities."""
    files = []
    for number, label in enumerate(THREE):
        one = time_series.generate(label, number, "test")
        files += [tmp_path / f"{label}_plot.png", tmp_path / f"{label}.csv"]
        series_plots.draw(one.values, files[-2])
        time_series.write_csv(one, files[-1])
    rows = series.predict(telling(trained), files, tmp_path)
    assert [row["filename"] for row in rows] == [str(file) for file in files]
    for row in rows:
        shares = row["probabilities"]
        assert list(shares) == list(CLASSES) and sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(shares, key=shares.get)
    shares = np.array([list(row["probabilities"].values()) for row in rows])
    apart = abs(shares[::2, None] - shares[None, 1::2]).sum(2)  # of every plot from every CSV file
    assert apart.argmin(1).tolist() == [0, 1, 2] and apart.diagonal().max() < 0.5
    assert all((tmp_path / f"{file.stem}_named.png").exists() and file.exists() for file in files)
    json.dumps(rows)


def test_predict_says_which_file_is_wrong(trained, root, tmp_path):
    plot = root / "test/volatility/000.png"
    (tmp_path / "torn.png").write_bytes(plot.read_bytes()[:200])
    (tmp_path / "flat.csv").write_text("data\n1\n1\n")
    Image.new("RGB", (790, 590), "white").save(tmp_path / "white.png")
    for name, message in {"torn.png": "torn.png is not a readable image", "flat.csv": "flat.csv is constant",
                          "white.png": "white.png has no blue line", "lost.csv": "lost.csv is no table",
                          "lost.png": "lost.png does not exist"}.items():  # fmt: skip
        with pytest.raises(data.DataError, match=message):
            series.predict(trained, [plot, tmp_path / name], tmp_path / "out")
    with pytest.raises(settings.InputError, match="two of the files have the same name"):
        series.predict(trained, [plot, root / "train/volatility/000.png"], tmp_path / "out")


# ------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize("changes", [
    {"flips": ("diagonal",)}, {"dropout": (0.1, 0.2)}, {"dropout": (0.1, 0.2, 1.5)}, {"size": (120,)},
    {"size": (16, 160)}, {"folds": 1}, {"generated": -1}, {"activation_weight": -0.1}, {"classes": ("volatility",)},
    {"classes": ("volatility", "volatility")}, {"classes": (1, 2)}, {"optimizer": "lion"}, {"epochs": 0},
])  # fmt: skip
def test_settings_that_cannot_be_are_named(changes):
    with pytest.raises(settings.InputError, match=next(iter(changes))):
        replace(TINY, **changes)


def test_full_is_the_users_recipe():
    expected = {"dataset": "plots", "backbone": "resnet50", "size": (224, 224), "dropout": (0.3, 0.3, 0.2),
                "epochs": 30, "batch_size": 32, "optimizer": "adam", "lr": 1e-3, "schedule": "plateau",
                "flips": ("horizontal",)}  # fmt: skip
    config = series.Config.full()
    assert {key: getattr(config, key) for key in expected} == expected and not config.cross_validate


@pytest.mark.parametrize("config", [series.Config.mini(), series.Config.real(), series.Config.full(), TINY, CROSSED])
def test_a_config_survives_its_checkpoint(config):
    assert series.Config.from_plain(json.loads(json.dumps(config.plain()))) == config


def test_models_are_built_to_the_config():
    config = replace(TINY, classes=THREE, flips=("vertical",))
    model = series.build_model(config, 2)
    assert len(model.members) == 2 and model.flips == ("vertical",)
    assert series.build_model(replace(config, tta=False)).flips == ()
    assert same(state(model), state(series.build_model(config, 2)))
    assert not same(state(model), state(series.build_model(replace(config, seed=1), 2)))
    assert model.members[0](traces(2))[0].shape == (2, 3)


# -------------------------------------------------------------------------------------------- command line
PAIRS = [f"{key}={value}" for key, value in {
    "width": 4, "generated": 0, "epochs": 1, "batch_size": 8, "warmup": 0, "amp": False, "classes": ",".join(THREE),
}.items()]  # fmt: skip


def run(*arguments) -> int:
    return main([str(argument) for argument in ("series", *arguments)])


def test_command_line_from_data_to_figures(house, root, monkeypatch, capsys):
    monkeypatch.setattr(series_plots, "write_dataset", lambda folder: shutil.copytree(root, folder))
    assert run("data") == 0
    assert run("train", *PAIRS) == 0
    weights = house / "weights/series/mini_mean_shift_point_anomaly_volatility.pth"
    assert f"wrote {weights}" in capsys.readouterr().out

    assert run("evaluate", "--weights", weights, "--json", house / "out.json") == 0
    record = json.loads((house / "out.json").read_text())
    assert set(PROVENANCE) <= record.keys() and all(isinstance(record[key], float) for key in HEADLINE)
    assert record["config"]["classes"] == list(THREE) and record["data"]["files"] == record["plots"] == 6
    assert record["command"] == f"python -m src series evaluate --weights DIR/{weights.name} --json DIR/out.json"
    assert record["activation"]["plots"] == 4 and len(record["accuracy_interval"]) == 2
    assert f"accuracy {record['accuracy']:.4f}" in capsys.readouterr().out

    file = root / "test/volatility/000.png"
    assert run("predict", file, "--weights", weights, "--out", house / "pictures") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["filename"] == str(file) and (house / "pictures/000_named.png").exists()

    assert run("figures", "--weights", weights) == 0
    written = [Path(path) for path in re.findall(r"wrote (.*)", capsys.readouterr().out)]
    assert {path.name for path in written} >= {f"mini_{kind}.png" for kind in ("wall", "confusion", "looks", "curves")}
    assert all(path.parent == house / "figures/series" and path.exists() for path in written)


@pytest.mark.parametrize("arguments, expected", [
    (("evaluate",), "weights/series/mini.pth is missing"), (("evaluate", "--weights", "lost.pth"), "lost.pth"),
    (("train", "rate=0.1"), "rate=0.1: unknown setting"), (("train", "backbone=vgg99"), "backbone=vgg99"),
    (("train", "classes=1,2"), "classes=(1, 2)"), (("train", "--weights", "lost.pth"), "lost.pth is not a file"),
    (("predict",), "predict needs image files"), (("report",), "series has no report"),
])  # fmt: skip
def test_wrong_input_is_named(root, capsys, arguments, expected):
    assert run(*arguments, "--root", root) == 1
    assert expected in capsys.readouterr().err

"""The system's public functions and its command line on tiny images: data, train, resume, load, evaluate, predict, errors."""

import json
import math
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from src import checkpoints, sets, settings, training
from src.__main__ import main
from src.sets import data, evaluation, features
from tests.sets.conftest import CLASSES, COUNTS, FROZEN, SIDE, TINY, picture, redirect, write_image

HEADLINE = ("top1", "top2", "top5")
PROVENANCE = ("command", "git_revision", "config", "seed", "data", "protocol", "wall_time", "device")


@pytest.fixture(autouse=True)
def house(monkeypatch, tmp_path) -> Path:
    """A house of this test's own: every folder that is written to lies in it."""
    redirect(monkeypatch, tmp_path / "house")
    return tmp_path / "house"


def tensors(model) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(first, second) -> bool:
    return all(map(torch.equal, first, second))


# -------------------------------------------------------------------------------------------- data sets
def test_train_and_val_are_carved_from_train_and_test_is_its_own(root):
    parts = sets.datasets(TINY, root)
    assert {split: torch.bincount(part.labels, minlength=6).tolist() for split, part in parts.items()} == {
        "train": [12] * 6, "val": [10] * 6, "test": [11] * 6}  # fmt: skip
    assert not set(parts["train"].names) & set(parts["val"].names)
    pixels = [{image.numpy().tobytes() for image in part.pixels} for part in parts.values()]
    assert sum(map(len, pixels)) == len(set.union(*pixels)) == 6 * (12 + 10 + 11)  # none in two splits
    for part in parts.values():
        assert part.classes == CLASSES
        assert all(CLASSES[k] == name.split("/")[0] for k, name in zip(part.labels.tolist(), part.names, strict=True))


def test_splits_follow_the_seed(root):
    names = [sets.datasets(replace(TINY, seed=seed), root)["val"].names for seed in (42, 42, 1)]
    assert names[0] == names[1] != names[2]


def test_test_may_be_carved_too(root):
    parts = sets.datasets(replace(TINY, per_class=(0.5, 0.25, 0.2)), root)
    assert {split: len(part) for split, part in parts.items()} == {"train": 66, "val": 36, "test": 24}
    assert len(set().union(*(part.names for part in parts.values()))) == 126
    test = data.read(root, "test", SIDE).pixels
    assert not (parts["test"].pixels[:, None] == test[None]).flatten(2).all(2).any()


def shown(part: data.Images) -> set[str]:
    """The classes that a split has images of, by their names on disk; its labels must say the same."""
    assert [part.classes[k] for k in part.labels.tolist()] == [name.split("/")[0] for name in part.names]
    return {name.split("/")[0] for name in part.names}


def test_unseen_classes_are_in_no_other_split(root):
    parts = sets.datasets(replace(TINY, unseen=2), root)
    unseen = shown(parts["unseen"])
    assert len(unseen) == 2 and len(parts["unseen"]) == 2 * COUNTS["train"]
    for split, count in {"train": 12, "val": 10, "test": 11}.items():
        assert shown(parts[split]) == set(CLASSES) - unseen and len(parts[split]) == 4 * count


def test_classes_may_be_chosen_and_left_out(root):
    parts = sets.datasets(replace(TINY, classes=("fox", "first3"), exclude=("bee",)), root)
    assert all(shown(part) == {"fox", "ant", "cat"} for part in parts.values()) and len(parts["test"]) == 33
    with pytest.raises(settings.InputError, match="no class unicorn"):
        sets.datasets(replace(TINY, classes=("unicorn", "ant")), root)


def test_test_may_lack_classes_that_are_not_asked_for(root, tmp_path):
    """Parts number their classes each for itself."""
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/test/ant")
    write_image(picture(np.random.default_rng(0), 0), tmp_path / "copy/test/aphid/0.png")
    parts = sets.datasets(replace(TINY, classes=("bee", "fox", "cat")), tmp_path / "copy")
    assert all(shown(part) == {"bee", "fox", "cat"} for part in parts.values())
    with pytest.raises(settings.InputError, match="no class ant"):
        sets.datasets(TINY, tmp_path / "copy")


def test_a_data_set_without_test_images_has_no_test_split(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "copy/train")
    assert set(sets.datasets(TINY, tmp_path / "copy")) == {"train", "val"}


def test_class_folders_directly_are_not_trained_on(root, tmp_path):
    """All their images count as the split that is evaluated: some of them would have been trained on."""
    for door in (sets.datasets, partial(sets.train, out=tmp_path / "out.pth"), sets.make_data):
        with pytest.raises(data.DataError, match=f"{root}/test holds no train/<class>"):
            door(replace(TINY, per_class=(6, 5)), root / "test")


def test_fixed_sets_of_the_splits_are_sound(root):
    parts = sets.datasets(TINY, root)
    for part in parts.values():
        data.check(data.fixed_sets(part, 500, TINY.seed), part.labels)


def test_more_images_than_there_are_cannot_be_had(root):
    with pytest.raises(settings.InputError, match=r"class ant has 22 images, not 450 \+ 50: change per_class"):
        sets.datasets(replace(TINY, per_class=(450, 50)), root)


def test_the_official_form_has_the_same_splits(tmp_path, official):
    official(tmp_path / "cifar")
    config = replace(TINY, dataset="cifar100", image_size=32)
    parts = sets.datasets(config, tmp_path / "cifar")
    assert {split: len(part) for split, part in parts.items()} == {"train": 72, "val": 60, "test": 66}


# --------------------------------------------------------------------------------------------- make data
def distribution(house: Path, dataset: str) -> dict:
    return json.loads((house / f"results/sets/{dataset}_distribution.json").read_text())


def test_mini_data_is_written_and_described(house, monkeypatch):
    monkeypatch.setattr(sets.glyphs, "CLASSES", sets.glyphs.CLASSES[:3])
    monkeypatch.setattr(
        sets.glyphs, "write_dataset", partial(sets.glyphs.write_dataset, counts={"train": 5, "test": 2})
    )
    sets.make_data(replace(sets.Config.mini(), per_class=(3, 2)))
    root = house / "data/mini/sets"
    assert sets.default_root("mini") == root and len(list(root.rglob("*.png"))) == 21
    assert distribution(house, "mini")["distribution"] == {
        "train": {"images": 9, "classes": 3}, "val": {"images": 6, "classes": 3}, "test": {"images": 6, "classes": 3},
    }  # fmt: skip


def test_a_folder_of_ones_own_is_described_and_left_alone(house, root):
    before = sorted(root.rglob("*"))
    sets.make_data(TINY, root)
    assert distribution(house, "folder")["distribution"]["train"] == {"images": 72, "classes": 6}
    assert sorted(root.rglob("*")) == before


def test_missing_cifar_names_the_command_that_fetches_it(house):
    with pytest.raises(data.DataError, match=f"{house}/data/cifar100 holds no train/.*./download.sh cifar100"):
        sets.make_data(replace(TINY, dataset="cifar100"))


# ------------------------------------------------------------------------------------------------ batches
def numbered(count: int = 20) -> data.Images:
    """``count`` images of each of four classes; the first pixel of image i is i."""
    labels = torch.arange(4).repeat(count)
    pixels = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels))
    return data.Images(pixels, labels, CLASSES[:4], tuple(str(i) for i in range(len(labels))))


def batches_of(config: sets.Config, images: data.Images, epoch: int) -> list[dict]:
    found = torch.arange(len(images)).float()[:, None] if config.frozen else None
    batches = sets.SetBatches(config, images, found)
    batches.set_epoch(epoch)
    drawn = list(batches)
    assert len(drawn) == len(batches)
    return drawn


def joined(batches: list[dict]) -> torch.Tensor:
    return torch.cat([torch.cat([value.flatten().float() for value in batch.values()]) for batch in batches])


@pytest.mark.parametrize("config", [TINY, FROZEN], ids=["end to end", "frozen"])
def test_sets_are_redrawn_every_epoch_and_the_same_for_the_same_seed(config):
    images = numbered()
    first = joined(batches_of(config, images, 0))
    assert torch.equal(joined(batches_of(config, images, 0)), first)
    assert not torch.equal(joined(batches_of(config, images, 1)), first)
    assert not torch.equal(joined(batches_of(replace(config, seed=1), images, 0)), first)


def test_frozen_batches_hold_the_features_of_whole_sets():
    images, config = numbered(), replace(FROZEN, train_sets=403)
    drawn = batches_of(config, images, 0)
    assert len(drawn) == 50 and all(set(batch) == {"features", "position"} for batch in drawn)
    assert drawn[0]["features"].shape == (8, 10, 1) and drawn[0]["position"].shape == (8,)
    indices = torch.cat([batch["features"][..., 0] for batch in drawn]).long()  # the feature of an image is its number
    found = data.check(data.Sets(indices, torch.cat([batch["position"] for batch in drawn])), images.labels)
    assert found["sets"] == 400 and found["images"] == len(images) and len(indices.unique(dim=0)) == 400


def test_pooled_batches_hold_few_images_and_sets_of_them():
    images, config = numbered(), replace(TINY, pool=(3, 11), batch_size=400)
    drawn = batches_of(config, images, 0)
    assert len(drawn) == 80 // 33
    for batch in drawn:
        chosen = batch["pixels"][:, 0, 0, 0].long()
        assert batch["pixels"].shape == (33, 3, 4, 4) and len(chosen.unique()) == 33
        assert torch.equal(batch["labels"], images.labels[chosen])
        assert torch.bincount(batch["labels"], minlength=4).sort().values.tolist() == [0, 11, 11, 11]
        found = data.check(data.Sets(batch["indices"], batch["position"]), batch["labels"])
        assert (found["sets"], found["images"]) == (400, 33)


@pytest.mark.parametrize("config", [TINY, FROZEN], ids=["end to end", "frozen"])
def test_processes_share_a_batch_and_draw_other_sets(config, monkeypatch):
    alone = batches_of(config, numbered(), 0)
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(training, "start_distributed", lambda rank=rank: (rank, 2))
        ranks.append(batches_of(config, numbered(), 0))
    assert not torch.equal(joined(ranks[0]), joined(ranks[1]))
    assert len(ranks[0]) == len(ranks[1]) == (len(alone) if config.frozen else len(alone) // 2)
    assert {len(batch["position"]) for batch in ranks[0] + ranks[1]} == {4}
    with pytest.raises(settings.InputError, match="batch_size=7 does not divide over 2 processes"):
        sets.SetBatches(replace(config, batch_size=7), numbered(), None)


def test_the_loss_is_over_positions_and_classes():
    torch.manual_seed(0)
    logits, named = torch.randn(5, 10), torch.randn(12, 3)
    position, labels = torch.randint(10, (5,)), torch.randint(3, (12,))
    over_positions = -np.mean([float(logits[i].log_softmax(0)[position[i]]) for i in range(5)])
    over_classes = -np.mean([float(named[i].log_softmax(0)[labels[i]]) for i in range(12)])
    batch = {"pixels": None, "indices": None, "position": position, "labels": labels}
    frozen = {"features": None, "position": position}
    found = [sets.loss(lambda features: logits, frozen, 0.5), sets.loss(lambda *given: (logits, None), batch, 0.5),
             sets.loss(lambda *given: (logits, named), batch, 0.5)]  # fmt: skip
    expected = [over_positions, over_positions, over_positions + 0.5 * over_classes]
    assert [float(value) for value in found] == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------- train
@pytest.mark.parametrize("head", sets.HEADS)
@pytest.mark.parametrize("base", [TINY, FROZEN], ids=["end to end", "frozen"])
def test_every_head_is_trained(root, tmp_path, base, head):
    config = replace(base, head=head)
    trained = sets.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    assert trained.source == tmp_path / "out.pth" and [row["epoch"] for row in trained.history] == [1, 2]
    assert all(math.isfinite(row["loss"]) and 0 <= row["top1"] <= row["top5"] <= 1 for row in trained.history)
    start = sets.build_model(config, len(CLASSES))
    assert same(tensors(start.encoder), tensors(trained.model.encoder)) == config.frozen
    assert not same(tensors(start.head), tensors(trained.model.head))
    assert (trained.model.class_layer() is None) == (config.frozen and head != "posterior")
    content = checkpoints.load(trained.source)
    assert content["config"] == config.plain()
    assert content["extras"] == {"history": trained.history, "classes": list(CLASSES)}


def test_what_was_chosen_is_what_validation_says(root, trained):
    """The checkpoint is of the best epoch; its accuracy on the validation sets is that of the history."""
    val = sets.datasets(TINY, root)["val"]
    drawn = data.fixed_sets(val, TINY.val_sets, TINY.seed)
    scores = evaluation.scores_of(trained.model.head, features.extract(trained.model.encoder, val), drawn.indices)
    assert evaluation.accuracy(scores, drawn.position)["top1"] == max(row["top1"] for row in trained.history)


def test_training_learns(root, tmp_path):
    """The classes have colours of their own, which even a random encoder keeps apart."""
    config = replace(FROZEN, epochs=6, train_sets=640, lr=3e-3, val_sets=300, dropout=0.0)
    trained = sets.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    assert trained.history[-1]["loss"] < 0.5 * math.log(10) and max(row["top1"] for row in trained.history) > 0.7


def test_training_anew_gives_the_same_weights(root, tmp_path, trained):
    again = sets.train(TINY, root, run_dir=tmp_path / "run", out=tmp_path / "again.pth")
    assert same(tensors(again.model), tensors(trained.model))
    other = sets.train(replace(TINY, seed=1, epochs=1), root, run_dir=tmp_path / "other", out=tmp_path / "other.pth")
    assert not same(tensors(other.model), tensors(trained.model))


@pytest.mark.parametrize("config", [TINY, FROZEN], ids=["end to end", "frozen"])
def test_a_resumed_run_equals_an_unbroken_one(root, tmp_path, config, monkeypatch):
    whole = sets.train(config, root, run_dir=tmp_path / "whole", out=tmp_path / "whole.pth")
    validate = evaluation.validate

    def killed(model, **given):
        if (tmp_path / "broken/last.pth").exists():
            raise KeyboardInterrupt
        return validate(model, **given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "validate", killed)
        sets.train(config, root, run_dir=tmp_path / "broken", out=tmp_path / "broken.pth")
    assert not (tmp_path / "broken.pth").exists()
    resumed = sets.train(config, root, run_dir=tmp_path / "broken", out=tmp_path / "broken.pth")
    assert same(tensors(resumed.model), tensors(whole.model))
    timeless = [[{**row, "seconds": 0} for row in run.history] for run in (resumed, whole)]
    assert timeless[0] == timeless[1]


def test_a_run_of_another_config_is_not_resumed(root, tmp_path, trained):
    with pytest.raises(checkpoints.CheckpointError, match="last.pth was made with another config:\n  lr: 0.001 in the"):
        sets.train(replace(TINY, lr=5e-4), root, run_dir=trained.source.parent / "run", out=tmp_path / "out.pth")


def test_frozen_features_are_computed_once(root, tmp_path, house, monkeypatch):
    """Whatever the head, and the classes and images chosen."""
    sets.train(FROZEN, root, run_dir=tmp_path / "first", out=tmp_path / "first.pth")
    assert len(list((house / "data/features").iterdir())) == 1
    monkeypatch.setattr(features, "_compute", lambda *given: pytest.fail("features are computed again"))
    for changes in ({"head": "attention"}, {"classes": ("first3",), "per_class": (11, 10)}, {"unseen": 2}):
        sets.train(replace(FROZEN, **changes), root, run_dir=tmp_path / str(changes), out=tmp_path / "out.pth")


def test_frozen_features_are_those_of_their_images(root, tmp_path, monkeypatch):
    """Training and validation features are those that the encoder gives the images of that split."""
    seen, fit = {}, training.fit

    def noted(head, batches, loss, validate, *given, **options):
        seen.update(train=batches.features, val=validate.keywords["features_of"]())
        return fit(head, batches, loss, validate, *given, **options)

    monkeypatch.setattr(training, "fit", noted)
    config = replace(FROZEN, unseen=2)
    trained = sets.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    parts = sets.datasets(config, root)
    for split, found in seen.items():
        assert torch.allclose(found, features.extract(trained.model.encoder, parts[split]), atol=1e-5)


def test_features_of_another_precision_are_computed_anew(root, tmp_path, monkeypatch):
    """Those kept are as exact as the run that kept them."""
    half, seen = torch.autocast("cpu", torch.bfloat16), []
    monkeypatch.setattr(training, "autocast", lambda config: half if config.amp else nullcontext())
    monkeypatch.setattr(training, "fit", lambda head, batches, *given, **options: seen.append(batches.features) or [])
    for amp in (True, False):
        trained = sets.train(replace(FROZEN, amp=amp), root, run_dir=tmp_path / str(amp), out=tmp_path / f"{amp}.pth")
    part = sets.datasets(FROZEN, root)["train"]
    assert not torch.equal(*seen) and torch.equal(seen[1], features.extract(trained.model.encoder, part))


def test_a_class_disjoint_run_has_never_met_the_unseen_classes(root, tmp_path, monkeypatch):
    config, seen = replace(TINY, unseen=2, epochs=1), []
    fit = training.fit

    def noted(model, batches, *given, **options):
        seen.append(torch.cat([batch["pixels"] for batch in batches]))
        return fit(model, batches, *given, **options)

    monkeypatch.setattr(training, "fit", noted)
    trained = sets.train(config, root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    unseen = sets.datasets(config, root)["unseen"]
    assert not (seen[0][:, None] == unseen.pixels[None]).flatten(2).all(2).any()
    found = sets.evaluate(config, trained.model, root, split="unseen")
    assert found["classes"] == 2 and set(found["per_class"]) == shown(unseen)


# ------------------------------------------------------------------------------------------ where it starts
@pytest.fixture
def stopped(monkeypatch):
    """Training that stops before its first step, so that the weights it starts from can be seen."""
    monkeypatch.setattr(training, "fit", lambda *given, **options: [])


def test_a_checkpoint_may_be_started_from(root, tmp_path, trained, stopped):
    config = replace(TINY, epochs=9, lr=1e-4)
    again = sets.train(config, root, weights=trained.source, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    assert same(tensors(again.model), tensors(trained.model)) and again.config == config


def test_a_checkpoint_that_does_not_fit_is_refused(root, tmp_path, trained, stopped):
    with pytest.raises(checkpoints.CheckpointError, match="tiny.pth does not fit the model"):
        sets.train(replace(TINY, width=32), root, weights=trained.source, out=tmp_path / "out.pth")


@pytest.mark.parametrize("changes, kept", [
    ({"head": "attention"}, ("encoder", "classifier")), ({"head": "posterior"}, ("encoder", "head.classifier")),
    ({"frozen": True}, ("encoder", "classifier")), ({"head": "attention", "class_weight": 0.0}, ("encoder",)),
])  # fmt: skip
def test_of_another_head_the_encoder_and_the_class_layer_are_taken(root, tmp_path, trained, stopped, changes, kept):
    config = replace(TINY, **changes)
    found = sets.train(config, root, weights=trained.source, run_dir=tmp_path / "run", out=tmp_path / "out.pth").model
    assert same(tensors(found.encoder), tensors(trained.model.encoder))
    if "encoder" not in kept[-1]:
        assert same(tensors(found.class_layer()), tensors(trained.model.class_layer()))
    fresh = sets.build_model(config, len(CLASSES)).state_dict()
    rest = {name: tensor for name, tensor in found.state_dict().items() if not name.startswith(kept)}
    assert rest.keys() == {name for name in fresh if not name.startswith(kept)}
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in rest.items())


def test_a_class_layer_of_other_classes_is_not_taken(root, tmp_path, trained, stopped):
    elsewhere = tmp_path / "data"
    shutil.copytree(root, elsewhere)
    (elsewhere / "train" / CLASSES[-1]).rename(elsewhere / "train" / "zebra")
    config = replace(TINY, head="attention")
    found = sets.train(config, elsewhere, weights=trained.source, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    fresh = sets.build_model(config, len(CLASSES))
    assert same(tensors(found.model.class_layer()), tensors(fresh.class_layer()))
    assert same(tensors(found.model.encoder), tensors(trained.model.encoder))


def test_a_frozen_run_keeps_the_encoder_that_it_started_from(root, tmp_path, trained):
    config = replace(FROZEN, head="attention")
    found = sets.train(config, root, weights=trained.source, run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    assert same(tensors(found.model.encoder), tensors(trained.model.encoder))


@pytest.fixture
def bare(tmp_path) -> tuple[Path, torch.nn.Module]:
    """(file, network): torchvision's state dict of a SqueezeNet with random weights."""
    torch.manual_seed(9)
    network = torchvision.models.squeezenet1_0()
    torch.save(network.state_dict(), tmp_path / "squeezenet.pth")
    return tmp_path / "squeezenet.pth", network


def test_imagenet_weights_may_be_a_local_file(root, tmp_path, bare, stopped):
    config = replace(TINY, backbone="squeezenet1_0", pretrained="imagenet", image_size=32)
    trained = sets.train(config, root, weights=bare[0], run_dir=tmp_path / "run", out=tmp_path / "out.pth")
    assert same(tensors(trained.model.encoder.network), tensors(bare[1].features))
    assert same(tensors(sets.load(trained.source, config).model), tensors(trained.model))


def test_weights_that_would_not_be_used_are_refused(root, tmp_path, bare, stopped):
    """pretrained=none asks for random weights: a file named all the same must not go unread."""
    config = replace(TINY, backbone="squeezenet1_0", pretrained="none", image_size=32)
    with pytest.raises(settings.InputError, match="squeezenet.pth|pretrained"):
        sets.train(config, root, weights=bare[0], run_dir=tmp_path / "run", out=tmp_path / "out.pth")


# --------------------------------------------------------------------------------------------------- load
def test_a_loaded_model_is_the_trained_one(trained):
    loaded = sets.load(trained.source, sets.Config.mini())
    assert loaded.config == TINY and loaded.source == trained.source and loaded.history == trained.history
    assert same(tensors(loaded.model), tensors(trained.model)) and not loaded.model.training


def test_a_checkpoint_needs_no_other_file(trained, root, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *given, **options: pytest.fail("a download"))
    alone = shutil.copy(trained.source, tmp_path / "alone.pth")
    found = sets.evaluate(TINY, sets.load(alone, TINY).model, root)
    assert json.dumps(found) == json.dumps(sets.evaluate(TINY, trained.model, root))


def test_files_of_a_run_that_has_not_ended_are_refused(trained):
    for name in ("best.pth", "last.pth"):
        with pytest.raises(checkpoints.CheckpointError, match=f"{name} is of a run that has not ended"):
            sets.load(trained.source.parent / "run" / name, TINY)


def test_the_committed_weights_are_those_of_their_profile():
    folder = settings.ROOT / "assets/weights/sets"
    for config in (sets.Config.mini(), sets.Config.real()):
        path = folder / sets.weights_path(config).name
        if config.dataset == "mini" or path.exists():
            assert sets.load(path, config).config == config and path.stat().st_size <= checkpoints.LIMIT


@pytest.mark.parametrize("pairs", [[], ["width=16", "head=transformer", "per_class=12,10"], ["pool=(3,10)"]])
def test_settings_that_agree_with_the_file_may_be_given(trained, pairs):
    assert sets.load(trained.source, sets.Config.full(), pairs).config == TINY


@pytest.mark.parametrize("pair, named", [
    ("width=32", "tiny.pth was made with another config:\n  width: 16 in the file, 32 asked for"),
    ("head=mlp", "head: 'transformer' in the file"), ("seed=1", "seed"),
    ("speed=2", "speed=2: unknown setting"),
])  # fmt: skip
def test_settings_that_contradict_the_file_are_refused(trained, pair, named):
    with pytest.raises(settings.InputError, match=named):
        sets.load(trained.source, TINY, [pair])


def test_files_of_other_kinds_are_refused(bare, tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="squeezenet.pth was not written by this project"):
        sets.load(bare[0], TINY)
    checkpoints.save(tmp_path / "road.pth", {}, config={"dataset": "camvid", "decoder": "deeplab"}, extras={})
    with pytest.raises(settings.InputError, match="settings unknown to src.sets: decoder"):
        sets.load(tmp_path / "road.pth", TINY)


def test_weights_are_loaded_or_made_or_missed(trained, monkeypatch):
    calls = []
    monkeypatch.setattr(sets, "train", lambda *given, **options: calls.append(given))
    monkeypatch.setattr(sets, "weights_path", lambda config: trained.source)
    assert same(tensors(sets.load_or_train(TINY, run_training=True).model), tensors(trained.model)) and not calls
    with pytest.raises(checkpoints.CheckpointError, match="another config"):
        sets.load_or_train(replace(TINY, epochs=9), run_training=True)
    monkeypatch.setattr(sets, "weights_path", lambda config: trained.source.with_name("lost.pth"))
    for config, profile in ((TINY, "real"), (sets.Config.mini(), "mini"), (sets.Config.full(), "full")):
        with pytest.raises(checkpoints.CheckpointError, match=f"lost.pth(.|\n)*sets train --profile {profile}"):
            sets.load_or_train(config, run_training=False)
    assert not calls
    with pytest.raises(checkpoints.CheckpointError, match="lost.pth"):
        sets.load_or_train(TINY, run_training=True)  # a train that leaves no file
    assert len(calls) == 1


def test_where_weights_and_data_are_kept(house):
    folder = house / "weights/sets"
    assert sets.weights_path(sets.Config.mini()) == folder / "mini.pth"
    assert sets.weights_path(sets.Config.real()) == folder / "cifar100.pth"
    assert sets.weights_path(sets.Config.full()) == folder / "cifar100_resnet18_transformer.pth"
    chosen = replace(sets.Config.full(), head="mlp", classes=("first20",), unseen=5)
    assert sets.weights_path(chosen) == folder / "cifar100_resnet18_mlp_first20_unseen5.pth"
    assert sets.default_root("mini") == house / "data/mini/sets"
    assert sets.default_root("cifar100") == house / "data/cifar100"


@pytest.mark.parametrize("changes", [{"classes": ("first20",)}, {"exclude": ("first20",)}, {"unseen": 20}])
@pytest.mark.parametrize("config", [sets.Config.real(), sets.Config.full()], ids=["end to end", "frozen"])
def test_a_run_on_some_classes_does_not_overwrite_the_weights_of_all(config, changes):
    assert sets.weights_path(replace(config, **changes)) != sets.weights_path(config)


# ------------------------------------------------------------------------------------------------ evaluate
def test_an_evaluation_says_what_was_measured_on_what(trained, root):
    found, described, protocol = sets.measure(trained, root, None, "test")
    assert protocol == evaluation.PROTOCOL and all(0 <= found[key] <= 1 for key in HEADLINE)
    assert found["classes"] == 6 and found["composition"]["sets"] == TINY.test_sets
    assert list(found["sizes"]) == ["5", "8", "10"] and set(found["per_class"]) == set(CLASSES)
    assert {key: described[key] for key in ("dataset", "split", "files")} == {
        "dataset": "folder", "split": "test", "files": 66}  # fmt: skip
    val, described, _ = sets.measure(trained, root, None, "val")
    assert described["files"] == 6 * COUNTS["train"] and val["sizes"] != found["sizes"]  # val's own images


def test_the_fingerprint_of_a_test_split_carved_from_train_is_that_of_train(trained, root):
    carved = replace(trained, config=replace(TINY, per_class=(12, 5, 5), test_sets=100, set_size=5))
    assert sets.measure(carved, root, None, "test")[1]["files"] == 6 * COUNTS["train"]
    assert sets.measure(carved, root, "folder", "test")[1]["files"] == 6 * COUNTS["train"]


def test_the_fingerprint_of_carved_splits_is_that_of_train(trained, root, tmp_path):
    """A val/ on disk is not what val is carved from; of another data set it is what is measured."""
    shutil.copytree(root, tmp_path / "copy")
    shutil.copytree(root / "test", tmp_path / "copy/val")
    own = sets.measure(trained, root, None, "val")
    found, described, _ = sets.measure(trained, tmp_path / "copy", None, "val")
    assert (found, described["sha256"]) == (own[0], own[1]["sha256"])
    assert sets.measure(trained, tmp_path / "copy", "cifar100", "val")[1]["files"] == 6 * COUNTS["test"]


def test_an_evaluation_is_of_the_right_images(trained, root, monkeypatch):
    seen = {}
    extract = features.extract

    def noted(encoder, images, *given):
        seen["images"] = images
        return extract(encoder, images, *given)

    monkeypatch.setattr(features, "extract", noted)
    parts = sets.datasets(TINY, root)
    for split in ("train", "val", "test"):
        sets.evaluate(TINY, trained.model, root, split=split)
        assert seen["images"].names == parts[split].names and torch.equal(seen["images"].pixels, parts[split].pixels)


def test_class_folders_directly_are_the_split_named(trained, root, tmp_path):
    """The official test images, held back until now, will come like this."""
    own = sets.measure(trained, root, None, "test")[0]
    shutil.copytree(root / "test", tmp_path / "held_back")
    for dataset in ("folder", "cifar100", None):
        found, described, _ = sets.measure(trained, tmp_path / "held_back", dataset, "test")
        assert json.dumps(found) == json.dumps(own) and described["files"] == 66
        assert described["dataset"] == (dataset or "folder")


def test_a_foreign_folder_may_have_other_classes_sizes_and_parts(trained, tmp_path):
    rng = np.random.default_rng(5)
    for number, name in enumerate(("gnu", "hen")):
        for i in range(12):
            write_image(picture(rng, number, (20, 24 + i)), tmp_path / "test" / name / f"{i}.jpg")
    found, described, _ = sets.measure(trained, tmp_path, "cifar100", "test")
    assert found["classes"] == 2 and set(found["per_class"]) == {"gnu", "hen"} and described["files"] == 24


@pytest.mark.parametrize("changes", [{"classes": ("ant", "fox", "dog")}, {"exclude": ("first2",)}])
def test_a_choice_of_classes_is_of_the_models_own_data_set(trained, root, tmp_path, changes):
    """Another one may have none of them."""
    config = replace(TINY, **changes)
    content = checkpoints.load(trained.source)
    path = checkpoints.save(tmp_path / "some.pth", content["weights"], config=config.plain(),
                            extras=content["extras"])  # fmt: skip
    some = sets.load(path, config)
    for number, name in enumerate(("gnu", "hen", "ibis")):
        for i in range(12):
            write_image(picture(np.random.default_rng(i), number), tmp_path / "data" / name / f"{i}.png")
    found, described, _ = sets.measure(some, tmp_path / "data", "cifar100", "test")
    assert set(found["per_class"]) == {"gnu", "hen", "ibis"} and described["classes"] == []
    for folder in (root, root / "test"):
        assert sets.measure(some, folder, None, "test")[0]["classes"] == (3 if config.classes else 4)
    with pytest.raises(settings.InputError, match="no class ant, fox here"):
        sets.measure(sets.load(path, config, ["classes=ant,fox"]), tmp_path / "data", "cifar100", "test")


def test_classes_too_small_for_a_set_are_named(trained, tmp_path):
    for name, count in {"gnu": 12, "hen": 9}.items():
        for i in range(count):
            write_image(picture(np.random.default_rng(i), 0), tmp_path / name / f"{i}.png")
    with pytest.raises(settings.InputError, match="hen has 9 images: too few for sets of 10"):
        sets.measure(trained, tmp_path, "folder", "test")


def test_sets_may_be_of_some_of_the_classes(trained, root):
    """Those of the checkpoint, chosen at load; the config stays its own."""
    some = sets.load(trained.source, TINY, ["classes=fox,first2"])
    assert some.config == TINY and trained.classes == ()
    found, described, _ = sets.measure(some, root, None, "test")
    assert set(found["per_class"]) == {"fox", "ant", "bee"} and found["classes"] == 3
    assert found["composition"]["images"] == 33 and found["composition"]["sets"] == TINY.test_sets
    assert described["classes"] == ["fox", "first2"]
    direct = sets.evaluate(TINY, trained.model, root, classes=("ant", "bee", "fox"))
    assert direct["top1"] == found["top1"]
    with pytest.raises(settings.InputError, match="no class gnu here"):
        sets.measure(sets.load(trained.source, TINY, ["classes=ant,gnu"]), root, None, "test")


def test_splits_and_roots_that_are_not_there_are_named(trained, root, tmp_path):
    with pytest.raises(settings.InputError, match=f"{root} has no split holdout: expected one of train, val, test"):
        sets.evaluate(TINY, trained.model, root, split="holdout")
    with pytest.raises(data.DataError, match=f"{tmp_path}/lost holds neither.*--root"):
        sets.evaluate(TINY, trained.model, tmp_path / "lost")


def test_the_flat_head_is_evaluated_too(root):
    config = replace(TINY, head="mlp")
    found = sets.evaluate(config, sets.build_model(config, 6), root)
    assert list(found["sizes"]) == ["10"] and 0 <= found["top1"] <= 1


def test_an_untrained_model_guesses(root):
    """Its head knows nothing of the classes, but features of other classes differ: it must not be near perfect."""
    found = sets.evaluate(TINY, sets.build_model(TINY, 6), root)
    assert found["chance"] == 0.1 and found["baselines"]["random"]["top1"] == pytest.approx(0.1, abs=0.08)


# ------------------------------------------------------------------------------------------------- predict
@pytest.fixture
def ten(root) -> list[Path]:
    return [root / f"test/ant/{i:03d}.png" for i in range(6)] + [root / "test/eel/004.png"] + [
        root / f"test/ant/{i:03d}.png" for i in range(6, 9)]  # fmt: skip


def test_predict_scores_each_file(trained, ten, root, tmp_path):
    rows = sets.predict(trained, ten, tmp_path / "out")
    assert [row["filename"] for row in rows] == [str(file) for file in ten]
    test = sets.datasets(TINY, root)["test"]
    chosen = torch.tensor([test.names.index(f"{file.parent.name}/{file.name}") for file in ten])
    scores = evaluation.scores_of(trained.model.head, features.extract(trained.model.encoder, test), chosen[None])[0]
    assert [row["score"] for row in rows] == pytest.approx(scores.tolist(), abs=1e-4)
    assert [row["probability"] for row in rows] == pytest.approx(F.softmax(scores, 0).tolist(), abs=1e-4)
    assert [row["is_odd"] for row in rows] == (scores == scores.max()).tolist()
    assert np.ptp(np.array(Image.open(tmp_path / "out/set.png").convert("L"))) > 0
    json.dumps(rows)


def test_predict_does_not_depend_on_the_order_of_the_files(trained, ten, tmp_path):
    rows = sets.predict(trained, ten, tmp_path)
    turned = sets.predict(trained, ten[::-1], tmp_path)[::-1]
    for key in ("score", "probability"):
        assert [row[key] for row in turned] == pytest.approx([row[key] for row in rows], abs=1e-4)


def test_predict_takes_images_of_any_size(trained, tmp_path):
    files = [write_image(picture(np.random.default_rng(i), i, (20 + i, 30)), tmp_path / f"{i}.jpg") for i in range(4)]
    assert len(sets.predict(trained, files, tmp_path / "out")) == 4


def test_predict_needs_three_files_that_are_there(trained, ten, tmp_path):
    with pytest.raises(settings.InputError, match="2 images: the odd one of three or more"):
        sets.predict(trained, ten[:2], tmp_path)
    with pytest.raises(data.DataError, match="lost.png does not exist"):
        sets.predict(trained, [*ten, Path("lost.png")], tmp_path)
    (tmp_path / "torn.png").write_bytes(ten[0].read_bytes()[:200])
    with pytest.raises(data.DataError, match="torn.png is not a readable image"):
        sets.predict(trained, [*ten, tmp_path / "torn.png"], tmp_path)


def test_the_flat_head_says_how_many_files_it_needs(ten, tmp_path):
    config = replace(TINY, head="mlp")
    flat = sets.Trained(config, sets.build_model(config, 6), [], tmp_path / "mlp.pth")
    assert len(sets.predict(flat, ten, tmp_path)) == 10
    with pytest.raises(settings.InputError, match="sets of 10 images, not 9"):
        sets.predict(flat, ten[:9], tmp_path)


# ------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize("changes", [
    {"head": "rnn"}, {"pretrained": "coco"}, {"set_size": 2}, {"width": 30, "heads": 4}, {"pool": (1, 10)},
    {"pool": (3, 9)}, {"pool": (3, 9), "set_size": 10}, {"per_class": (10,)}, {"per_class": (1, 1, 1, 1)},
    {"optimizer": "lion"}, {"epochs": 0}, {"heads": 0}, {"width": 0},
])  # fmt: skip
def test_settings_that_cannot_be_are_named(changes):
    with pytest.raises(settings.InputError, match=next(iter(changes))):
        replace(TINY, **changes)


def test_settings_of_the_other_kind_of_training_do_not_matter():
    assert replace(FROZEN, pool=(1, 1)).frozen and replace(TINY, set_size=5, pool=(2, 5)).set_size == 5


@pytest.mark.parametrize("changes, named", [
    ({"backbone": "vgg16"}, "backbone='vgg16'"), ({"pretrained": "imagenet"}, "convnet has no ImageNet weights"),
    ({"pool": (7, 10)}, "a pool of 7 classes x 10 images does not fit 6 classes"),
    ({"pool": (2, 13)}, "a pool of 2 classes x 13 images does not fit.*12 images"),
    ({"set_size": 11, "pool": (3, 11)}, "10 images: too few for sets of 11"),
    ({"frozen": True, "train_sets": 7}, "train_sets|batch"),
    ({"unseen": 5}, "unseen=5 of 6 classes"), ({"per_class": (20, 3)}, "per_class"),
])  # fmt: skip
def test_settings_that_do_not_fit_the_data_are_refused(root, tmp_path, changes, named):
    with pytest.raises(settings.InputError, match=named):
        sets.train(replace(TINY, **changes), root, run_dir=tmp_path / "run", out=tmp_path / "out.pth")


def test_full_is_the_users_recipe():
    config = sets.Config.full()
    expected = {"dataset": "cifar100", "optimizer": "adamw", "lr": 3e-4, "weight_decay": 1e-4, "batch_size": 32,
                "epochs": 50, "patience": 10, "seed": 42, "train_sets": 10_000, "val_sets": 2_000, "test_sets": 2_000,
                "set_size": 10, "per_class": (450, 50), "backbone": "resnet18", "pretrained": "imagenet",
                "frozen": True, "image_size": 224, "head": "transformer", "width": 256, "layers": 4, "heads": 4,
                "dropout": 0.1, "schedule": "constant"}  # fmt: skip
    assert {key: getattr(config, key) for key in expected} == expected


def test_mini_needs_no_download_and_real_takes_data_of_ones_own():
    mini = sets.Config.mini()
    assert (mini.dataset, mini.pretrained, mini.backbone, mini.image_size) == ("mini", "none", "convnet", 32)
    counts = sets.glyphs.COUNTS
    assert sum(mini.per_class) <= counts["train"] and mini.set_size <= min(mini.per_class[1], counts["test"])
    assert mini.pool[0] <= len(sets.glyphs.CLASSES) and mini.pool[1] <= mini.per_class[0]
    assert len(sets.glyphs.CLASSES) >= 30 and mini.val_sets == 2_000
    cifar, folder = (sets.Config.real(dataset) for dataset in sets.REAL)
    assert (cifar.dataset, cifar.per_class) == ("cifar100", (450, 50)) and not cifar.frozen
    assert (folder.dataset, folder.per_class) == ("folder", (0.8, 0.2)) and cifar.test_sets == 10_000
    assert cifar.pool[0] <= 20 and cifar.pool[1] <= 450  # the twenty first or diverse classes can be trained on too


@pytest.mark.parametrize("config", [sets.Config.mini(), sets.Config.real(), sets.Config.real("folder"),
                                    sets.Config.full(), TINY])  # fmt: skip
def test_a_config_survives_its_checkpoint(config):
    assert sets.Config.from_plain(json.loads(json.dumps(config.plain()))) == config


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("head", sets.HEADS)
def test_models_are_built_to_the_config(head, dropout):
    config = replace(TINY, head=head, width=32, layers=3, heads=4, dropout=dropout, set_size=7)
    model = sets.build_model(config, 5)
    dropouts = {m.p for m in model.head.modules() if isinstance(m, torch.nn.Dropout)}
    assert dropouts == ({dropout} if head != "posterior" else set())
    assert model.class_layer().out_features == 5 and model.head(torch.zeros(2, 7, 256)).shape == (2, 7)
    if head == "transformer":
        assert len(model.head.layers) == 3 and model.head.layers[0].self_attn.num_heads == 4
    assert same(tensors(model), tensors(sets.build_model(config, 5)))
    assert not same(tensors(model), tensors(sets.build_model(replace(config, seed=1), 5)))


# -------------------------------------------------------------------------------------------- command line
PAIRS = [f"{key}={value}" for key, value in {
    "per_class": "12,10", "train_sets": 64, "val_sets": 60, "test_sets": 200, "image_size": SIDE, "width": 16,
    "layers": 1, "heads": 2, "pool": "3,10", "epochs": 1, "batch_size": 8, "amp": False,
}.items()]  # fmt: skip


def run(*arguments) -> int:
    return main([str(argument) for argument in ("sets", *arguments)])


def failure(capsys, *arguments) -> str:
    assert run(*arguments) == 1
    return capsys.readouterr().err


def test_command_line_from_data_to_figures(house, root, ten, monkeypatch, capsys):
    monkeypatch.setattr(sets.glyphs, "write_dataset", lambda folder: shutil.copytree(root, folder))
    assert run("data", "per_class=12,10") == 0
    assert distribution(house, "mini")["distribution"]["val"] == {"images": 60, "classes": 6}

    assert run("train", *PAIRS) == 0
    assert f"wrote {house / 'weights/sets/mini.pth'}" in capsys.readouterr().out
    assert (house / "runs/sets/mini/last.pth").exists()

    assert run("evaluate", "--json", house / "out.json") == 0
    record = json.loads((house / "out.json").read_text())
    assert set(PROVENANCE) <= record.keys() and all(isinstance(record[key], float) for key in HEADLINE)
    assert record["config"]["pool"] == [3, 10] and record["data"]["files"] == 66 and len(record["top1_interval"]) == 2
    assert record["command"] == "python -m src sets evaluate --json DIR/out.json" and record["seed"] == 42
    assert f"top1 {record['top1']:.4f}" in capsys.readouterr().out

    assert run("predict", *ten, "--out", house / "pictures") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["filename"] for row in rows] == [str(file) for file in ten] and (house / "pictures/set.png").exists()

    assert run("figures") == 0
    written = re.findall(r"wrote (.*)", capsys.readouterr().out)
    assert {Path(path).name for path in written} >= {"mini_sets.png", "mini_attention.png", "mini_features.png"}
    assert all(Path(path).parent == house / "figures/sets" and Path(path).exists() for path in written)


def test_command_line_on_class_folders(trained, root, house, capsys):
    arguments = ("evaluate", "--dataset", "folder", "--split", "test", "--weights", trained.source)
    assert run(*arguments, "--root", root / "test", "--json", house / "direct.json") == 0
    assert run(*arguments, "--root", root, "--json", house / "part.json") == 0
    direct, part = (json.loads((house / name).read_text()) for name in ("direct.json", "part.json"))
    for key in (*HEADLINE, "top1_interval", "per_class", "hardest_pairs", "sizes", "none_odd", "baselines"):
        assert direct[key] == part[key]
    assert direct["data"]["dataset"] == "folder" and str(root.parent) not in json.dumps(direct)


def test_command_line_trains_on_class_folders(root, house, capsys):
    pairs = [*PAIRS, "backbone=convnet", "pretrained=none", "frozen=True"]
    assert run("train", "--profile", "real", "--dataset", "folder", "--root", root, *pairs) == 0
    assert f"wrote {house / 'weights/sets/folder_convnet_posterior.pth'}" in capsys.readouterr().out


def test_missing_weights_name_the_command(capsys):
    message = failure(capsys, "evaluate")
    assert "weights/sets/mini.pth" in message and "python -m src sets train --profile mini" in message
    assert "cifar100.pth" in failure(capsys, "predict", "a.png", "--profile", "real")
    assert "lost.pth" in failure(capsys, "evaluate", "--weights", "lost.pth")


@pytest.mark.parametrize("arguments, named", [
    (("train", "rate=0.1"), "rate=0.1: unknown setting"), (("train", "epochs=many"), "epochs=many"),
    (("train", "head=rnn"), "head='rnn'"), (("train", "backbone=vgg16"), "backbone='vgg16'"),
    (("train", "heads=0"), "heads=0"), (("train", "pool=3"), "pool=(3,)"), (("train", "classes=ant,gnu"), "gnu"),
    (("train", "classes=1,2"), "no class 1, 2"), (("train", "pool=16,10"), "a pool of 16 classes x 10 images"),
    (("train", "frozen=True", "train_sets=7"), "train_sets=7"), (("train", "unseen=5"), "unseen=5"),
    (("train", "--weights", "lost.pth"), "lost.pth is not a file"), (("predict",), "predict needs image files"),
    (("report",), "sets has no report"),
])  # fmt: skip
def test_wrong_settings_are_named(root, capsys, arguments, named):
    pairs = [pair for pair in PAIRS if pair.split("=")[0] not in " ".join(arguments)] if arguments[0] == "train" else []
    assert named in failure(capsys, *arguments, "--root", root, *pairs)


@pytest.mark.parametrize("arguments, named", [
    (("evaluate", "--split", "holdout"), "has no split holdout"), (("evaluate", "width=32"), "width: 16 in the file"),
    (("predict", "a.png", "b.png"), "2 images"), (("predict", "a.png", "b.png", "c.png"), "a.png does not exist"),
])  # fmt: skip
def test_wrong_input_is_named(trained, root, capsys, arguments, named):
    assert named in failure(capsys, *arguments, "--root", root, "--weights", trained.source)


def test_a_root_without_images_is_named(trained, tmp_path, capsys):
    for action in ("evaluate", "figures"):
        message = failure(capsys, action, "--weights", trained.source, "--root", tmp_path)
        assert f"{tmp_path} holds neither" in message
    assert f"{tmp_path} holds no train/<class>" in failure(capsys, "train", "--root", tmp_path)


def test_only_predict_takes_files(capsys):
    assert run("evaluate", "a.png") == 2
    assert "a.png" in capsys.readouterr().err

"""Batches, losses, training, resuming, and what a training starts from."""

import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from src import checkpoints, sets, settings, system, training
from src.labelled import Labelled
from src.sets import data, evaluation, features, fitting
from src.sets.config import HEADS
from src.sets.sampling import Sets, check, fixed_sets
from tests.sets.conftest import CLASSES, FROZEN, TINY, picture, same, tensors, write_image

BOTH = pytest.mark.parametrize("config", [TINY, FROZEN], ids=["end to end", "frozen"])


def train(config: sets.Config, root: Path, folder: Path, weights: Path | None = None) -> system.Trained:
    """Train with everything written below a folder."""
    return sets.train(config, root, weights=weights, run_dir=folder / "run", out=folder / "out.pth")


# ------------------------------------------------------------------------------------------------ batches
def numbered(count: int = 20) -> Labelled:
    """``count`` images of each of four classes; the first pixel of image i is i."""
    labels = torch.arange(4).repeat(count)
    pixels = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(len(labels))
    return Labelled(pixels, labels, CLASSES[:4], tuple(str(i) for i in range(len(labels))))


def batches_of(config: sets.Config, epoch: int = 0) -> list[dict]:
    images = numbered()
    if config.frozen:
        batches = fitting.FeatureBatches(config, images, torch.arange(len(images)).float()[:, None])
    else:
        batches = fitting.PixelBatches(config, images)
    batches.set_epoch(epoch)
    drawn = list(batches)
    assert len(drawn) == len(batches)
    return drawn


def joined(batches: list[dict]) -> torch.Tensor:
    return torch.cat([torch.cat([value.flatten().float() for value in batch.values()]) for batch in batches])


@BOTH
def test_sets_are_drawn_anew_every_epoch_and_follow_the_seed(config):
    first = joined(batches_of(config))
    assert torch.equal(joined(batches_of(config)), first)
    assert not torch.equal(joined(batches_of(config, epoch=1)), first)
    assert not torch.equal(joined(batches_of(replace(config, seed=1))), first)


def test_frozen_batches_hold_the_features_of_whole_sets():
    drawn = batches_of(replace(FROZEN, train_sets=403))
    assert len(drawn) == 50 and all(set(batch) == {"features", "position"} for batch in drawn)
    assert drawn[0]["features"].shape == (8, 10, 1) and drawn[0]["position"].shape == (8,)
    indices = torch.cat([batch["features"][..., 0] for batch in drawn]).long()  # the feature of an image is its number
    composition = check(Sets(indices, torch.cat([batch["position"] for batch in drawn])), numbered().labels)
    assert composition["sets"] == 400 and composition["images"] == 80 and len(indices.unique(dim=0)) == 400


def test_pooled_batches_hold_few_images_and_sets_of_them():
    drawn = batches_of(replace(TINY, pool=(3, 11), batch_size=400))
    assert len(drawn) == 80 // 33
    for batch in drawn:
        numbers = batch["pixels"][:, 0, 0, 0].long()
        assert batch["pixels"].shape == (33, 3, 4, 4) and len(numbers.unique()) == 33
        assert torch.equal(batch["labels"], numbered().labels[numbers])
        assert torch.bincount(batch["labels"], minlength=4).sort().values.tolist() == [0, 11, 11, 11]
        composition = check(Sets(batch["indices"], batch["position"]), batch["labels"])
        assert (composition["sets"], composition["images"]) == (400, 33)


@BOTH
def test_processes_share_a_batch_and_draw_other_sets(config, monkeypatch):
    alone, ranks = batches_of(config), []
    for rank in (0, 1):
        monkeypatch.setattr(training, "start_distributed", lambda rank=rank: (rank, 2))
        ranks.append(batches_of(config))
    assert not torch.equal(joined(ranks[0]), joined(ranks[1]))
    assert len(ranks[0]) == len(ranks[1]) == (len(alone) if config.frozen else len(alone) // 2)
    assert {len(batch["position"]) for batch in ranks[0] + ranks[1]} == {4}
    with pytest.raises(settings.InputError, match="batch_size=7 does not divide over 2 processes"):
        batches_of(replace(config, batch_size=7))


def test_the_loss_is_over_positions_and_classes():
    torch.manual_seed(0)
    logits, class_logits = torch.randn(5, 10), torch.randn(12, 3)
    position, labels = torch.randint(10, (5,)), torch.randint(3, (12,))
    over_positions, over_classes = F.cross_entropy(logits, position), F.cross_entropy(class_logits, labels)
    batch = {"pixels": None, "indices": None, "position": position, "labels": labels}
    losses = [
        fitting.head_loss(lambda features: logits, {"features": None, "position": position}),
        fitting.joint_loss(lambda *batch: (logits, None), batch, 0.5),
        fitting.joint_loss(lambda *batch: (logits, class_logits), batch, 0.5),
    ]
    assert torch.allclose(torch.stack(losses), torch.stack([over_positions] * 2 + [over_positions + over_classes / 2]))


# --------------------------------------------------------------------------------------------------- train
@pytest.mark.parametrize("head", HEADS)
@BOTH
def test_every_head_is_trained(root, tmp_path, config, head):
    config = replace(config, head=head)
    trained = train(config, root, tmp_path)
    assert trained.source == tmp_path / "out.pth" and [row["epoch"] for row in trained.history] == [1, 2]
    assert all(math.isfinite(row["loss"]) and 0 <= row["top1"] <= row["top5"] <= 1 for row in trained.history)
    start = sets.build_model(config, {"classes": CLASSES})
    assert same(tensors(start.encoder), tensors(trained.model.encoder)) == config.frozen
    assert not same(tensors(start.head), tensors(trained.model.head))
    assert (trained.model.class_layer() is None) == (config.frozen and head != "posterior")
    content = checkpoints.load(trained.source)
    assert content["config"] == config.plain()
    assert content["extras"] == {"history": trained.history, "classes": list(CLASSES)}
    loaded = system.load(sets, trained.source, sets.Config.mini())
    assert loaded.config == config and same(tensors(loaded.model), tensors(trained.model))


def test_the_best_epoch_by_validation_is_kept(root, trained):
    val = data.datasets(TINY, root)["val"]
    val_sets = fixed_sets(val, TINY.val_sets, TINY.seed)
    metrics = evaluation.validate(trained.model.head, features.extract(trained.model.encoder, val), val_sets)
    assert metrics["top1"] == max(row["top1"] for row in trained.history)


def test_training_learns(root, tmp_path):
    """The classes have colours of their own, which even a random encoder keeps apart."""
    config = replace(FROZEN, epochs=6, train_sets=640, lr=3e-3, val_sets=300, dropout=0.0)
    history = train(config, root, tmp_path).history
    assert history[-1]["loss"] < 0.5 * math.log(10) and max(row["top1"] for row in history) > 0.7


@BOTH
def test_a_resumed_run_equals_an_unbroken_one(root, tmp_path, config, monkeypatch):
    unbroken = train(config, root, tmp_path / "unbroken")
    validate = evaluation.validate

    def killed(*arguments):
        if (tmp_path / "broken/run/last.pth").exists():
            raise KeyboardInterrupt
        return validate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "validate", killed)
        train(config, root, tmp_path / "broken")
    assert not (tmp_path / "broken/out.pth").exists()
    resumed = train(config, root, tmp_path / "broken")
    assert same(tensors(resumed.model), tensors(unbroken.model))
    timeless = [[{**row, "seconds": 0} for row in run.history] for run in (resumed, unbroken)]
    assert timeless[0] == timeless[1]


def test_a_run_of_another_config_or_other_images_is_not_resumed(root, tmp_path, trained):
    shutil.copytree(trained.source.parent / "run", tmp_path / "run")
    with pytest.raises(checkpoints.CheckpointError, match="lr: 0.001 in the file"):
        train(replace(TINY, lr=5e-4), root, tmp_path)
    shutil.copytree(root, tmp_path / "data")
    write_image(picture(np.random.default_rng(9), 0), tmp_path / "data/train/ant/000.png")
    with pytest.raises(checkpoints.CheckpointError, match="holds a run on other data"):
        train(TINY, tmp_path / "data", tmp_path)


def test_frozen_features_are_computed_once(root, tmp_path, project, monkeypatch):
    """Whatever the head, and the classes and images chosen."""
    train(FROZEN, root, tmp_path / "first")
    assert len(list((project / "data/features").iterdir())) == 1
    monkeypatch.setattr(features, "_compute", lambda *arguments: pytest.fail("features are computed again"))
    for changes in ({"head": "attention"}, {"classes": ("first3",), "per_class": (11, 10)}, {"unseen": 2}):
        train(replace(FROZEN, **changes), root, tmp_path / str(changes))


@pytest.fixture
def given_to_fit(monkeypatch) -> list[tuple]:
    """What trainings pass to ``training.fit``, which then does nothing."""
    calls = []
    monkeypatch.setattr(training, "fit", lambda *arguments, **options: calls.append(arguments) or [])
    return calls


def test_frozen_features_are_those_of_their_images(root, tmp_path, given_to_fit):
    config = replace(FROZEN, unseen=2)
    trained = train(config, root, tmp_path)
    (_, batches, *_), part = given_to_fit[0], data.datasets(config, root)["train"]
    assert torch.allclose(batches.features, features.extract(trained.model.encoder, part), atol=1e-5)


def test_features_of_another_precision_are_computed_anew(root, tmp_path, given_to_fit, monkeypatch):
    half = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(training, "autocast", lambda config: half if config.amp else nullcontext())
    for amp in (True, False):
        trained = train(replace(FROZEN, amp=amp), root, tmp_path / str(amp))
    mixed, full = (batches.features for _, batches, *_ in given_to_fit)
    part = data.datasets(FROZEN, root)["train"]
    assert not torch.equal(mixed, full) and torch.equal(full, features.extract(trained.model.encoder, part))


def test_a_class_disjoint_run_never_trains_on_the_unseen_classes(root, tmp_path, given_to_fit):
    config = replace(TINY, unseen=2)
    trained = train(config, root, tmp_path)
    _, batches, *_ = given_to_fit[0]
    pixels, unseen = torch.cat([batch["pixels"] for batch in batches]), data.datasets(config, root)["unseen"]
    assert not (pixels[:, None] == unseen.items[None]).flatten(2).all(2).any()
    metrics = sets.evaluate(trained, root, split="unseen")
    assert set(metrics["per_class"]) == {unseen.classes[label] for label in unseen.labels.tolist()}


# ------------------------------------------------------------------------------------------ where it starts
def test_a_checkpoint_may_be_started_from(root, tmp_path, trained, given_to_fit):
    started = train(replace(TINY, epochs=9, lr=1e-4), root, tmp_path, trained.source)
    assert same(tensors(started.model), tensors(trained.model))


def test_a_checkpoint_that_does_not_fit_is_refused(root, tmp_path, trained, given_to_fit):
    with pytest.raises(checkpoints.CheckpointError, match="tiny.pth does not fit the model"):
        train(replace(TINY, width=32), root, tmp_path, trained.source)


@pytest.mark.parametrize(
    "changes, kept",
    [
        ({"head": "attention"}, ("encoder", "classifier")),
        ({"head": "posterior"}, ("encoder", "head.classifier")),
        ({"frozen": True}, ("encoder", "classifier")),
        ({"frozen": True, "class_weight": 0.0}, ("encoder",)),
        ({"class_weight": 0.0}, ("encoder", "head")),
    ],
)
def test_what_fits_of_a_checkpoint_is_taken(root, tmp_path, trained, given_to_fit, changes, kept):
    config = replace(TINY, **changes)
    model = train(config, root, tmp_path, trained.source).model
    assert same(tensors(model.encoder), tensors(trained.model.encoder))
    if "head" in kept:
        assert same(tensors(model.head), tensors(trained.model.head))
    if kept[-1].endswith("classifier"):
        assert same(tensors(model.class_layer()), tensors(trained.model.class_layer()))
    fresh = sets.build_model(config, {"classes": CLASSES}).state_dict()
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(kept)}
    assert rest.keys() == {name for name in fresh if not name.startswith(kept)}
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in rest.items())


@pytest.mark.parametrize("head", ["transformer", "posterior"])
def test_a_class_layer_of_other_classes_is_not_taken(root, tmp_path, head):
    """As when class folders of one's own start from CIFAR-100's weights."""
    shutil.copytree(root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/train" / CLASSES[-1])
    shutil.rmtree(tmp_path / "data/test" / CLASSES[-1])
    config = replace(TINY, head=head, epochs=1)
    start = train(config, root, tmp_path / "start")
    started = train(replace(config, seed=1), tmp_path / "data", tmp_path / "own", start.source)
    assert started.model.class_layer().out_features == 5
    frozen = replace(FROZEN, epochs=1)
    head_alone = train(frozen, tmp_path / "data", tmp_path / "frozen", start.source)
    assert same(tensors(head_alone.model.encoder), tensors(start.model.encoder))
    assert sets.evaluate(head_alone, tmp_path / "data", split="val")["classes"] == 5


@pytest.fixture
def bare(tmp_path) -> tuple[Path, torch.nn.Module]:
    """(file, network): torchvision's state dict of a SqueezeNet with random weights."""
    torch.manual_seed(9)
    network = torchvision.models.squeezenet1_0()
    torch.save(network.state_dict(), tmp_path / "squeezenet.pth")
    return tmp_path / "squeezenet.pth", network


def test_imagenet_weights_may_be_a_local_file(root, tmp_path, bare, given_to_fit):
    config = replace(TINY, backbone="squeezenet1_0", pretrained="imagenet", image_size=32)
    trained = train(config, root, tmp_path, bare[0])
    assert same(tensors(trained.model.encoder.network), tensors(bare[1].features))
    with pytest.raises(settings.InputError, match="squeezenet.pth would not be used: set pretrained=imagenet"):
        train(replace(config, pretrained="none"), root, tmp_path, bare[0])
    with pytest.raises(settings.InputError, match="convnet has no ImageNet weights"):
        train(replace(TINY, pretrained="imagenet"), root, tmp_path)


def test_imagenet_weights_may_be_wrapped(root, tmp_path, bare, given_to_fit):
    _, network = bare
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    config = replace(TINY, backbone="squeezenet1_0", pretrained="imagenet", image_size=32)
    trained = train(config, root, tmp_path, tmp_path / "wrapped.pth")
    assert same(tensors(trained.model.encoder.network), tensors(network.features))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pool": (7, 10)}, "a pool of 7 classes x 10 images does not fit 6 classes"),
        ({"pool": (2, 13)}, "a pool of 2 classes x 13 images does not fit.*12 images"),
        ({"set_size": 11, "pool": (3, 11)}, "10 images: too few for sets of 11"),
        ({"frozen": True, "train_sets": 7}, "train_sets=7 do not fill one batch of 8"),
        ({"unseen": 5}, "unseen=5 of 6 classes"),
        ({"per_class": (20, 3)}, "change per_class"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(root, tmp_path, changes, message):
    with pytest.raises(settings.InputError, match=message):
        train(replace(TINY, **changes), root, tmp_path)

"""Profiles, wrong settings, and the names that weights are kept under."""

import subprocess
import sys
from dataclasses import replace

import pytest

from src import sets, settings, system
from src.synthetic import glyphs
from tests.sets.conftest import FROZEN, TINY

FULL, REAL = sets.Config.full(), sets.Config.real()


def test_the_config_is_read_without_torch():
    command = "import sys; from src import sets; sets.Config.mini(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], cwd=settings.ROOT).returncode == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "rnn"},
        {"backbone": "vgg16"},
        {"pretrained": "coco"},
        {"set_size": 2},
        {"heads": 0},
        {"width": 0},
        {"width": -4},
        {"width": 30, "heads": 4},
        {"layers": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"class_weight": -1.0},
        {"image_size": 0},
        {"image_size": 16, "backbone": "resnet18"},
        {"unseen": -1},
        {"unseen": 1},
        {"train_sets": 0},
        {"val_sets": 0},
        {"test_sets": -5},
        {"pool": (1, 10)},
        {"pool": (3, 9)},
        {"pool": (3,)},
        {"pool": (3, 10.5)},
        {"pool": (0, 10), "frozen": True},
        {"per_class": (10,)},
        {"per_class": (1, 1, 1, 1)},
        {"per_class": (10, 0)},
        {"per_class": (10, -1)},
        {"per_class": ("a", "b")},
        {"optimizer": "lion"},
        {"epochs": 0},
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_what_is_expected(changes):
    with pytest.raises(settings.InputError, match=f"^{next(iter(changes))}=.*: expected "):
        replace(TINY, **changes)


def test_settings_of_the_other_kind_of_training_do_not_matter():
    assert replace(FROZEN, pool=(1, 1)).frozen and replace(TINY, set_size=5, pool=(2, 5)).set_size == 5


def test_removed_settings_are_still_read():
    old = TINY.plain() | {"attention": "dot", "positional": False, "accumulate": 1, "per_epoch": False}
    assert sets.Config.from_plain(old) == TINY
    with pytest.raises(settings.InputError, match="settings unknown to src.sets.config: positional"):
        sets.Config.from_plain(old | {"positional": True})


def test_full_is_the_courses_recipe():
    recipe = {
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "epochs": 50,
        "patience": 10,
        "train_sets": 10_000,
        "test_sets": 2_000,
        "per_class": (450, 50),
        "backbone": "resnet18",
        "pretrained": "imagenet",
        "frozen": True,
        "image_size": 224,
        "head": "transformer",
        "width": 256,
        "layers": 4,
        "heads": 4,
        "schedule": "constant",
    }
    assert {key: getattr(FULL, key) for key in recipe} == recipe


def test_mini_fits_its_data_and_real_takes_data_of_ones_own():
    mini = sets.Config.mini()
    assert sum(mini.per_class) <= glyphs.COUNTS["train"]
    assert mini.set_size <= min(mini.per_class[1], glyphs.COUNTS["test"])
    assert mini.pool[0] <= len(glyphs.CLASSES) and mini.pool[1] <= mini.per_class[0]
    assert [sets.Config.real(dataset).per_class for dataset in sets.REAL] == [(450, 50), (0.8, 0.2)]


@pytest.mark.parametrize(
    "config, name",
    [
        (sets.Config.mini(), "mini"),
        (REAL, "cifar100"),
        (sets.Config.real("folder"), "folder"),
        (FULL, "cifar100_resnet18_transformer"),
        (replace(REAL, frozen=True, head="transformer"), "cifar100_mobilenet_v2_transformer"),
        (replace(REAL, exclude=("first20",)), "cifar100_without_first20"),
        (replace(FULL, head="mlp", classes=("first20",), unseen=5), "cifar100_resnet18_mlp_first20_unseen5"),
    ],
)
def test_weights_are_named_by_what_was_trained(config, name, project):
    assert system.weights_path(sets, config) == project / f"weights/sets/{name}.pth"

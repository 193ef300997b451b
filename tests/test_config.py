"""Configs: overrides by type, names of old checkpoints, and one clear line for each wrong value."""

from dataclasses import dataclass

import pytest

from src.config import Config, SystemConfig, TrainingConfig
from src.settings import InputError


@dataclass(frozen=True)
class Example(SystemConfig):
    RENAMED = {"rate": "share", ("mode", "user"): "course"}
    REMOVED = {"gone": 0}

    mode: str = "plain"
    share: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    crop: tuple[int, int] | None = None
    on: bool = False


@pytest.mark.parametrize(
    ("pair", "name", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("share=1", "share", 1.0),
        ("mode=a=b", "mode", "a=b"),
        ("sizes=3,4", "sizes", (3, 4)),
        ("sizes=(3,4)", "sizes", (3, 4)),
        ("crop=(5,6)", "crop", (5, 6)),
        ("crop=None", "crop", None),
        ("on=true", "on", True),
        ("rate=0.25", "share", 0.25),
        ("mode=user", "mode", "course"),
    ],
)
def test_overrides_are_read_by_the_type_of_the_setting(pair, name, value):
    assert getattr(Example().override([pair]), name) == value


@pytest.mark.parametrize(
    "pair",
    ["epochs=many", "epochs=1.5", "epochs", "epochs=", "share=None", "sizes=None", "on=3", "unknown=1", "gone=1"],
)
def test_wrong_overrides_are_named(pair):
    with pytest.raises(InputError, match=f"^{pair}"):
        Example().override([pair])


def test_old_checkpoints_are_read_by_their_names():
    values = {"rate": 0.1, "mode": "user", "gone": 0, "accumulate": 1, "per_epoch": False, "sizes": [7]}
    assert Example.from_plain(values) == Example(share=0.1, mode="course", sizes=(7,))
    for value in ({"gone": 1}, {"accumulate": 2}, {"colour": 1}):
        with pytest.raises(InputError, match=f"settings unknown to .*: {next(iter(value))}"):
            Example.from_plain(value)


def test_plain_form_is_read_back():
    config = Example(sizes=(3,), crop=(4, 5))
    assert config.plain()["crop"] == [4, 5] and Example.from_plain(config.plain()) == config
    assert Config() == Config.from_plain({})
    assert SystemConfig(dataset="streets").weights_name == "streets"


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "optimizer": ["sgd"],
        "schedule": ["linear"],
        "epochs": [0, -1],
        "batch_size": [0],
        "lr": [-1e-3, float("nan"), float("inf")],
        "weight_decay": [-1.0],
        "warmup": [-1],
        "plateau_patience": [-1],
        "plateau_factor": [0.0, 1.0],
        "clip_norm": [-1.0],
        "patience": [-1],
        "workers": [-1],
    }.items(),
)
def test_values_out_of_range_are_named_with_their_range(name, values):
    for value in values:
        with pytest.raises(InputError, match=f"^{name}={value!r}: expected "):
            TrainingConfig(**{name: value})
    with pytest.raises(InputError, match="^warmup=5: expected .* none with schedule=plateau"):
        TrainingConfig(schedule="plateau", warmup=5)


def test_a_number_beyond_all_floats_is_refused():
    with pytest.raises(InputError, match="^clip_norm=9+: '9+' is not a value like 0.0"):
        TrainingConfig().override([f"clip_norm={'9' * 400}"])

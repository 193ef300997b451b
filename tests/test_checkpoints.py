"""Checkpoints survive interruption, execute nothing, and are refused with a reason."""

import ast
import errno
import os
import pickle
import resource
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from src import checkpoints, config, settings
from src.checkpoints import CheckpointError

SRC = Path(checkpoints.__file__).parent
CONFIG = {"seed": 1, "size": [3, 4]}


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((50, 20), value), "steps": torch.tensor(3)}


@pytest.fixture
def path(tmp_path) -> Path:
    """A good checkpoint, alone in its folder."""
    return checkpoints.save(tmp_path / "weights" / "model.pth", state(), config=CONFIG)


def test_round_trip(tmp_path):
    metric = {"name": "miou", "value": 0.5}
    path = checkpoints.save(tmp_path / "a" / "b.pth", state(0.1), config={}, step=5, epoch=2, metric=metric)
    content = checkpoints.load(path)
    assert {key: content[key] for key in ("format", "step", "epoch", "metric", "torch")} == {
        "format": 1,
        "step": 5,
        "epoch": 2,
        "metric": metric,
        "torch": str(torch.__version__),
    }
    assert torch.equal(content["weights"]["weight"], state(0.1)["weight"])
    assert content["weights"]["steps"].dtype == torch.int64
    assert os.listdir(path.parent) == ["b.pth"]


# ------------------------------------------------------------------------------------------- writing
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            settings.InputError, match=r"^cannot write .*model\.pth \(File too large\): free space[^\n]*$"
        ):
            checkpoints.save(tmp_path / "model.pth", {"weight": torch.zeros(100_000)}, config={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not os.listdir(tmp_path)


# -------------------------------------------------------------------------------------------- reading
class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, legacy):
    file, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"format": 1, "weights": state(), "config": {}, "extras": Payload(trace)}
    if legacy:
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    for read in (checkpoints.read, checkpoints.load):
        with pytest.raises(CheckpointError, match=r"evil.pth is unsafe: it holds .* \([\w.]+\),.*model.state_dict"):
            read(file)
    assert not trace.exists()


def test_every_load_in_src_is_weights_only():
    calls = [
        node
        for file in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("torch.load", "pickle.load", "pickle.loads"))
    ]
    assert calls
    for call in calls:
        assert "weights_only=True" in [ast.unparse(keyword) for keyword in call.keywords], ast.unparse(call)


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.98])
def test_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.pth is damaged.*; delete it and fetch or train it again"):
        checkpoints.load(path)


@pytest.mark.parametrize("changed", ["bit", "block", "start"])
def test_a_change_that_torch_would_not_see_is_refused(path, changed):
    content = bytearray(path.read_bytes())
    weights = content.index(state()["weight"].numpy().tobytes())
    if changed == "bit":
        content[weights + 401] ^= 64
    elif changed == "block":
        content[weights : weights + 512] = bytes(512)
    else:
        content[:64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pth is damaged .*; delete it"):
        checkpoints.load(path)


def test_files_of_the_older_format_have_no_checksums_but_are_read(tmp_path):
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoints.read(tmp_path / "old.pth")["weight"], state()["weight"])


def write_text(file: Path) -> None:
    file.write_text("<html>404</html>")


def write_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "not torch")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_text, "delete it and fetch or train it again"),
        (write_zip, "is a zip archive, but not of PyTorch weights; check the file name"),
        (lambda file: torch.save([1, 2], file), "holds a list.*check the file name"),
        (lambda file: torch.save(state(), file), "not written by this project; train or download its own"),
        (lambda file: torch.save({"format": 99, "weights": {}, "config": {}}, file), "not written by this project"),
        (lambda file: file.mkdir(), "not a file; check the path"),
        (lambda file: None, "not a file; check the path, or train or download it"),
    ],
)
def test_foreign_files_are_refused_by_name_and_remedy(tmp_path, write, reason):
    file = tmp_path / "foreign.pth"
    write(file)
    with pytest.raises(CheckpointError, match=rf"foreign\.pth .*{reason}"):
        checkpoints.load(file)


def test_unreadable_file_is_not_called_damaged(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"model\.pth cannot be read \(Permission denied\)"):
        checkpoints.load(path)


def test_bare_state_dict():
    assert checkpoints.is_bare_state_dict(state())
    for content in ({}, {"weights": state()}, {1: torch.zeros(1)}, torch.zeros(1), None):
        assert not checkpoints.is_bare_state_dict(content)


def prefixed(prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state().items()}


@pytest.mark.parametrize(
    "content",
    [
        state(),
        {"state_dict": state(), "epoch": 1},
        {"model": state(), "optimizer": {"state": {}}},
        {"model_state_dict": state()},
        prefixed("module."),
        prefixed("_orig_mod."),
        {"state_dict": prefixed("model.")},
        {"state_dict": prefixed("net._orig_mod.module.")},
    ],
)
def test_state_dicts_of_other_code_are_unwrapped(tmp_path, content):
    torch.save(content, tmp_path / "theirs.pth")
    unwrapped = checkpoints.pretrained(None, tmp_path / "theirs.pth")
    assert unwrapped.keys() == state().keys() and torch.equal(unwrapped["weight"], state()["weight"])


@pytest.mark.parametrize(
    "content",
    [
        prefixed("module.") | {"head": torch.zeros(1)},
        {"format": 1, "weights": prefixed("module."), "config": {}},
        {"state_dict": {"epoch": 1}},
        {},
    ],
)
def test_what_is_not_wrapped_stays_as_it_is(content):
    assert checkpoints.unwrapped(content) is content


def test_misfit_names_file_and_entries():
    model, weights = nn.Linear(4, 2), nn.Linear(4, 2).state_dict()
    checkpoints.load_weights(model, weights, "own.pth")
    assert torch.equal(model.weight, weights["weight"])
    misfit = {"weight": torch.zeros(3, 4), "head.bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="other.pth does not fit the model") as caught:
        checkpoints.load_weights(model, misfit, "other.pth")
    for part in ("1 missing (first: bias)", "1 unexpected (first: head.bias)", "1 of another shape (first: weight)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    model, weights = nn.Linear(4, 2), nn.Linear(4, 2).state_dict()
    before = model.bias.detach().clone()
    weights["weight"][1, 2] = value
    with pytest.raises(CheckpointError, match=r"^own\.pth holds NaN or infinite weights in weight; train or download"):
        checkpoints.load_weights(model, weights, "own.pth")
    assert torch.equal(model.bias, before)


# ------------------------------------------------------------------------------------------------ fp16
def test_half_rounds_and_halves(tmp_path):
    weights = {
        "weight": torch.randn(100, 100, generator=torch.Generator().manual_seed(0)),
        "steps": torch.tensor(70000),
    }
    whole = checkpoints.save(tmp_path / "whole.pth", weights, config={})
    half = checkpoints.save(tmp_path / "half.pth", weights, half=True, config={})
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = checkpoints.load(half)["weights"]
    assert loaded["weight"].dtype == torch.float32
    assert torch.equal(loaded["weight"], weights["weight"].half().float())
    assert ((loaded["weight"] - weights["weight"]).abs() <= weights["weight"].abs() * 2**-11 + 2**-25).all()
    assert torch.equal(loaded["steps"], weights["steps"])


def test_beyond_fp16_is_refused(tmp_path):
    for value in (1e5, -1e5, float("nan")):
        with pytest.raises(CheckpointError, match="weight .*range of fp16.*half=False"):
            checkpoints.save(tmp_path / "half.pth", state(value), half=True, config={})
    assert not list(tmp_path.iterdir())
    checkpoints.save(tmp_path / "half.pth", state(65504.0) | {"empty": torch.zeros(0)}, half=True, config={})


@pytest.mark.parametrize(("limit", "rounded"), [(10**6, False), (3000, True), (1000, False)])
def test_round_to_fit(tmp_path, monkeypatch, limit, rounded):
    """Rounded only where the file (4 kB in fp32) is too large as it is and fits in fp16."""
    monkeypatch.setattr(checkpoints, "LIMIT", limit)
    model = nn.Sequential(nn.Linear(20, 50, bias=False), nn.BatchNorm1d(1, affine=False))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert checkpoints.round_to_fit(model) is rounded
    after = model.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"].half().float() if rounded else before["0.weight"])
    assert after["0.weight"].dtype == torch.float32 and after["1.num_batches_tracked"].dtype == torch.int64
    stored = checkpoints.load(checkpoints.save(tmp_path / "model.pth", after, half=rounded, config={}))["weights"]
    assert all(torch.equal(stored[name], after[name]) for name in after)


# ---------------------------------------------------------------------------------------------- config
@dataclass(frozen=True)
class Settings(config.Config):
    REMOVED = {"heads": [1, 2]}

    dataset: str = "mini"
    seed: int = 1
    size: tuple[int, ...] = (3, 4)


def test_config_differences_are_named():
    assert checkpoints.config_differences(CONFIG, {"seed": 1, "size": [3, 4]}) == []
    assert checkpoints.config_differences(CONFIG | {"lr": 0.1}, {"seed": 2, "size": [3, 4], "old": True}) == [
        "lr: '(absent)' in the file, 0.1 asked for",
        "old: True in the file, '(absent)' asked for",
        "seed: 2 in the file, 1 asked for",
    ]


def test_another_config_is_refused_and_a_younger_setting_counts_as_its_default():
    content = {"config": {"dataset": "mini", "seed": 2}}  # older than ``size``
    checkpoints.require_same_config(Settings(seed=2), content, "m.pth")
    with pytest.raises(CheckpointError, match=r"(?s)m\.pth was made .* seed: 2 in the file, 1 asked.*move this one"):
        checkpoints.require_same_config(Settings(), content, "m.pth")
    with pytest.raises(CheckpointError, match=r"size: \[3, 4\] in the file, \[5, 6\] asked"):
        checkpoints.require_same_config(Settings(seed=2, size=(5, 6)), content, "m.pth")


def test_a_setting_that_is_gone_may_stand_where_it_stayed():
    content = {"config": {"dataset": "mini", "seed": 2, "size": [3, 4], "heads": [1, 2]}}
    checkpoints.require_same_config(Settings(seed=2), content, "m.pth")
    assert Settings.from_plain(content["config"]) == Settings(seed=2)
    content["config"]["heads"] = [1, 3]
    with pytest.raises(CheckpointError, match=r"heads: \[1, 3\] in the file, '\(absent\)' asked for"):
        checkpoints.require_same_config(Settings(seed=2), content, "m.pth")
    with pytest.raises(settings.InputError, match="settings unknown to .*: heads"):
        Settings.from_plain(content["config"])


def test_a_run_under_way_is_no_finished_model(tmp_path):
    path = checkpoints.save(tmp_path / "best.pth", state(), config={})
    with pytest.raises(CheckpointError, match=r"best\.pth is of a run that has not ended"):
        checkpoints.load_finished(path)
    checkpoints.save(path, state(), config={}, extras={"history": []})
    assert checkpoints.load_finished(path)["extras"] == {"history": []}


def test_summary_adds_up_histories(tmp_path):
    rows = [{"epoch": 1, "seconds": 30.0}, {"epoch": 2, "seconds": 90.0}]
    extras = {"history": {"teacher 33": rows, "val": rows[:1], "all": []}, "outlier_history": rows, "classes": ["a"]}
    weights = {"a": torch.zeros(500_000), "b": torch.zeros(2, 250_000)}
    path = checkpoints.save(tmp_path / "x.pth", weights, config={}, extras=extras)
    found = checkpoints.summary(path)
    assert found["parameters, M"] == 1 and found["minutes"] == pytest.approx((90 + 30 + 90) / 60)
    assert found["MB"] == pytest.approx(path.stat().st_size / 1e6)
    plain = checkpoints.save(tmp_path / "y.pth", weights, config={})
    assert checkpoints.summary(plain)["minutes"] == 0

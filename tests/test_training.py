"""The training loop: it learns, resumes bit for bit after a kill, and runs alike on one process and on two."""

import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset

from src import checkpoints, settings, training
from src.config import TrainingConfig
from src.metrics import ConfusionMatrix
from src.training import Batches, NonFiniteLoss

# Children are forked from a server that has imported torch once: cheap to start, and free of this process's threads.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "torch._dynamo", "torch.utils.tensorboard"])
PATIENCE = 900  # seconds to wait for a child
QUICK = TrainingConfig(amp=False, epochs=3, batch_size=8, lr=0.01, workers=0)


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(settings, "DEVICE", torch.device("cpu"))


# ----------------------------------------------------------------------------------------------- a toy
class Stripes(Dataset):
    """Noisy (1,8,8) images of horizontal (0) or vertical (1) stripes."""

    def __init__(self, samples: int = 40):
        generator = torch.Generator().manual_seed(0)
        horizontal = torch.arange(8).remainder(2).float()[:, None].expand(8, 8)
        self.labels = torch.arange(samples) % 2
        images = torch.stack([horizontal.T if label else horizontal for label in self.labels])
        self.images = (images + 0.5 * torch.randn(images.shape, generator=generator))[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.labels[index]


def shift(sample: tuple) -> tuple:
    """Augmentation: roll the image by a random number of pixels and add noise."""
    image, label = sample
    return image.roll(int(torch.randint(8, ())), -1) + 0.1 * torch.randn(image.shape), label


def keep(sample: tuple) -> tuple:
    return sample


def convolutions() -> nn.Module:
    """With all that a run must restore: BatchNorm statistics and dropout."""
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def loss(model: nn.Module, batch: tuple) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def validate(model: nn.Module) -> dict[str, float]:
    """Mean IoU over Stripes and the number of samples counted, over however many ranks there are."""
    assert not model.training
    matrix, share = ConfusionMatrix(2), training.shard(Stripes())
    for index in range(len(share)):
        image, label = share[index]
        matrix.update(model(image[None]).argmax(1), label[None])
    matrix.all_reduce()
    return {"miou": float(matrix.compute()["miou"]), "samples": float(matrix.matrix.sum())}


def run(folder: Path, config: TrainingConfig = QUICK, model: nn.Module | None = None, **changes) -> tuple:
    """Train on Stripes; returns (model, history)."""
    model = model or linear()
    arguments = {"batches": Batches(Stripes(), config, keep), "loss": loss, "validate": validate, "monitor": "miou"}
    history = training.fit(model, config=config, run_dir=folder, **arguments | changes)
    return model, history


def scripted(values: list[float]):
    """A validation that gives these values one by one and notes the weights it saw."""
    seen = []

    def check(model: nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"metric": values[len(seen) - 1]}

    return check, seen


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_time(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


# ---------------------------------------------------------------------------------------------- fitting
def test_learns_and_reports(tmp_path, capsys):
    model, history = run(tmp_path, replace(QUICK, epochs=10))
    assert validate(model)["miou"] > 0.95 and not model.training
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert [row["epoch"] for row in history] == list(range(1, 11))
    assert list(history[0]) == ["epoch", "loss", "lr", "miou", "samples", "seconds"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    pattern = r"epoch +\d+/10  lr 1\.00e-02  loss \d+\.\d{4}  miou \d\.\d{4}  samples 40\.0000  \d+ s( \*)?"
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert lines[0].endswith("*")


def test_leaves_the_weights_of_the_best_epoch(tmp_path):
    check, seen = scripted([0.1, 0.5, 0.3, 0.5])  # of two equal epochs the first
    model, history = run(tmp_path, replace(QUICK, epochs=4), validate=check, monitor="metric")
    assert same(model.state_dict(), seen[1]) and not same(seen[1], seen[3])
    best = checkpoints.load(tmp_path / "best.pth")
    assert (best["epoch"], best["step"], best["metric"]) == (2, 10, {"name": "metric", "value": 0.5})
    assert best["config"] == replace(QUICK, epochs=4).plain()
    assert [row["metric"] for row in history] == [0.1, 0.5, 0.3, 0.5]


def test_with_nothing_to_choose_by_the_last_epoch_is_kept(tmp_path):
    check, seen = scripted([0.5, 0.9, 0.1])
    model, history = run(tmp_path, validate=check, monitor=None)
    assert same(model.state_dict(), seen[2]) and not same(seen[1], seen[2]) and len(history) == 3
    best = checkpoints.load(tmp_path / "best.pth")
    assert (best["epoch"], best["metric"]) == (3, {"name": None, "value": None})
    nothing, history = run(tmp_path / "nothing", validate=lambda model: {}, monitor=None)
    assert same(nothing.state_dict(), model.state_dict()) and "metric" not in history[0]


def test_an_epoch_draws_random_numbers_of_its_own_and_the_same_again(tmp_path):
    draws = {"once": [], "again": []}
    for name, numbers in draws.items():

        def drawing(model: nn.Module, batch: tuple, numbers: list = numbers) -> torch.Tensor:
            numbers.append(float(torch.rand(())))
            return loss(model, batch)

        torch.rand(1)
        run(tmp_path / name, loss=drawing)
    assert draws["once"] == draws["again"] and len(set(draws["once"])) == 15


def test_minimize(tmp_path):
    check, seen = scripted([0.3, 0.1, 0.2])
    model, _ = run(tmp_path, validate=check, monitor="metric", minimize=True)
    assert same(model.state_dict(), seen[1])


def test_early_stopping(tmp_path):
    check, seen = scripted([0.1, 0.4, 0.4, 0.3, 0.9])
    config = replace(QUICK, epochs=9, patience=2)
    model, history = run(tmp_path, config, validate=check, monitor="metric")
    assert len(history) == 4 and same(model.state_dict(), seen[1])
    again, repeated = run(tmp_path, config, validate=None, monitor="metric")  # a finished run trains no further
    assert repeated == history and same(again.state_dict(), model.state_dict())


def test_tensorboard_holds_the_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = run(tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "miou", "samples", "seconds"}
    for name in ("loss", "miou"):
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        assert scalars == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in history]


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_clip_norm(tmp_path, clip):
    """What a step leaves in the parameters is the gradient, or the gradient at the norm allowed."""
    reference, left = linear(), []
    loss(reference, Stripes()[:]).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])

    def check(model: nn.Module) -> dict[str, float]:
        left.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        return {}

    run(tmp_path, replace(QUICK, epochs=1, batch_size=40, clip_norm=clip), validate=check, monitor=None)
    assert gradient.norm() > 0.1
    torch.testing.assert_close(left[0], gradient * (clip / gradient.norm() if clip else 1), rtol=1e-3, atol=1e-6)


# -------------------------------------------------------------------------------------------- schedules
def rates(config: TrainingConfig, steps: int) -> list[float]:
    """Learning rate of every optimiser step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = training.make_scheduler(optimizer, config, steps)
    values = []
    for _ in range(config.epochs * steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_schedules():
    poly = [0.1 * (1 - step / 12) ** 0.9 for step in range(12)]
    cosine = [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    config = TrainingConfig(lr=0.1, epochs=3)
    assert rates(config, 4) == [0.1] * 12
    assert rates(replace(config, schedule="poly"), 4) == pytest.approx(poly)
    assert rates(replace(config, schedule="cosine"), 4) == pytest.approx(cosine)


def test_the_rate_is_lowered_at_every_step_of_a_run(tmp_path):
    _, history = run(tmp_path, replace(QUICK, schedule="poly"))
    assert [row["lr"] for row in history] == pytest.approx([0.01 * (1 - step / 15) ** 0.9 for step in (0, 5, 10)])


def test_warm_up_comes_before_the_schedule():
    warm = rates(TrainingConfig(lr=0.1, epochs=3, schedule="poly", warmup=5), 4)
    assert warm[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert warm[5:] == pytest.approx([0.1 * (1 - step / 7) ** 0.9 for step in range(7)])


@pytest.mark.parametrize("minimize", [False, True])
def test_plateau_lowers_the_rate_after_epochs_without_improvement(tmp_path, minimize):
    values = [0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.7]
    check, _ = scripted([1 - value if minimize else value for value in values])
    config = replace(QUICK, epochs=7, schedule="plateau", plateau_patience=1, plateau_factor=0.1)
    _, history = run(tmp_path, config, validate=check, monitor="metric", minimize=minimize)
    assert [row["lr"] for row in history] == pytest.approx([1e-2] * 4 + [1e-3] * 3)


# ------------------------------------------------------------------------------------- what goes wrong
def test_non_finite_loss_stops_and_keeps_the_last_good_epoch(tmp_path):
    calls = []

    def breaking(model: nn.Module, batch: tuple) -> torch.Tensor:
        calls.append(1)
        return loss(model, batch) * (float("nan") if len(calls) == 13 else 1)  # the third batch of epoch 3

    with pytest.raises(NonFiniteLoss, match=r"loss nan at step 12, epoch 3, batch 2; .* kept\. Lower lr"):
        run(tmp_path, loss=breaking)
    last, best = checkpoints.load(tmp_path / "last.pth"), checkpoints.load(tmp_path / "best.pth")
    assert last["state"]["epoch"] == 2 and best["epoch"] <= 2
    assert len(run(tmp_path)[1]) == len(run(tmp_path / "whole")[1]) == 3  # resumed, as if nothing had been
    resumed, whole = (checkpoints.load(folder / "last.pth")["weights"] for folder in (tmp_path, tmp_path / "whole"))
    assert same(resumed, whole)


def test_non_finite_gradient_of_a_finite_loss_is_caught(tmp_path):
    """Else the weights of an epoch's last step could be NaN in last.pth without any loss having been."""
    calls = []

    def breaking(model: nn.Module, batch: tuple) -> torch.Tensor:
        calls.append(1)
        value = loss(model, batch)
        return value + (model[1].weight.sum() * 0).sqrt() if len(calls) == 10 else value

    with pytest.raises(settings.InputError, match=r"gradient norm nan at step 9, epoch 2, batch 4"):
        run(tmp_path, loss=breaking)
    assert checkpoints.load(tmp_path / "last.pth")["state"]["epoch"] == 1


def test_monitored_nan_is_refused(tmp_path):
    check, _ = scripted([0.5, float("nan")])
    with pytest.raises(settings.InputError, match="metric is NaN after epoch 2"):
        run(tmp_path, validate=check, monitor="metric")
    assert checkpoints.load(tmp_path / "last.pth")["state"]["epoch"] == 1


def test_resuming_another_config_is_refused_by_name(tmp_path):
    run(tmp_path)
    before = (tmp_path / "last.pth").read_bytes()
    with pytest.raises(checkpoints.CheckpointError, match=r"(?s)last\.pth .*lr: 0\.01 in the file, 0\.02 asked for"):
        run(tmp_path, replace(QUICK, lr=0.02))
    assert (tmp_path / "last.pth").read_bytes() == before


def test_resuming_from_something_else_is_refused(tmp_path):
    run(tmp_path)
    shutil.copy(tmp_path / "best.pth", tmp_path / "last.pth")
    with pytest.raises(checkpoints.CheckpointError, match=r"last\.pth holds weights alone"):
        run(tmp_path)
    (tmp_path / "last.pth").write_bytes(b"")
    with pytest.raises(checkpoints.CheckpointError, match=r"last\.pth is damaged"):
        run(tmp_path)


def test_resuming_on_other_data_is_refused(tmp_path):
    run(tmp_path / "run", fingerprint="a")
    run(tmp_path / "run", fingerprint="a")
    with pytest.raises(
        checkpoints.CheckpointError, match=r"run on other data, or from other weights: move .*/run away .* or train"
    ) as error:
        run(tmp_path / "run", fingerprint="b")
    assert "\n" not in str(error.value)


def test_runs_of_older_versions_are_resumed(tmp_path):
    """Their config holds settings that are gone, and they name no data."""
    _, history = run(tmp_path)
    content = checkpoints.read(tmp_path / "last.pth")
    content["config"] |= {"accumulate": 1, "per_epoch": False}
    del content["fingerprint"]
    checkpoints.write(content, tmp_path / "last.pth")
    assert run(tmp_path, validate=None, fingerprint="a")[1] == history
    content["config"]["accumulate"] = 2
    checkpoints.write(content, tmp_path / "last.pth")
    with pytest.raises(checkpoints.CheckpointError, match="accumulate: 2 in the file"):
        run(tmp_path)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    for name in (".last.pth.abc", ".best.pth.abc", "mine.pth.abc"):
        (tmp_path / name).write_text("half")
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*pth*")) == ["best.pth", "last.pth", "mine.pth.abc"]


# ---------------------------------------------------------------------------------------------- batches
class Numbers(Dataset):
    """Sample i is the number i."""

    def __init__(self, samples: int):
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        return index


def with_noise(number: int) -> tuple:
    return number, torch.rand(2), torch.rand(())


def drawn(config: TrainingConfig, epoch: int, samples: int = 21) -> list[tuple[int, tuple]]:
    """(number, noise) of every sample of an epoch, in order."""
    batches = Batches(Numbers(samples), config, with_noise)
    batches.set_epoch(epoch)
    rows = [(n, pair, x) for n, pair, x in batches]
    assert len(rows) == len(batches)
    return [(int(n), (*pair.tolist(), float(x))) for row in rows for n, pair, x in zip(*row, strict=True)]


def test_order_and_augmentation_depend_on_seed_epoch_and_index_alone():
    config = TrainingConfig(batch_size=4, workers=0)
    first = drawn(config, 0)
    torch.manual_seed(99)
    assert drawn(config, 0) == first
    assert drawn(replace(config, workers=2), 0) == first
    assert drawn(replace(config, batch_size=2), 0) == first  # 20 of 21 samples either way
    others = [drawn(config, 1), drawn(replace(config, seed=43), 0)]
    for other in others:
        assert [n for n, _ in other] != [n for n, _ in first]
        shared = set(dict(other)) & set(dict(first))
        assert all(dict(other)[n] != dict(first)[n] for n in shared)
    assert len({noise for _, noise in first}) == 20


def test_incomplete_batch_is_left_out_and_no_sample_comes_twice():
    config = TrainingConfig(batch_size=4, workers=0)
    numbers = [n for n, _ in drawn(config, 0)]
    assert len(numbers) == len(set(numbers)) == 20
    missed = {(set(range(21)) - {n for n, _ in drawn(config, epoch)}).pop() for epoch in range(8)}
    assert len(missed) > 1


def test_augmentation_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    sample = Batches(Numbers(8), TrainingConfig(batch_size=4, workers=0), with_noise).dataset
    expected = torch.get_rng_state()
    sample[0, 3]
    assert torch.equal(torch.get_rng_state(), expected)


def test_shares_of_the_ranks_partition_every_batch(monkeypatch):
    config = TrainingConfig(batch_size=6, workers=0)
    whole = drawn(config, 2)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(training, "start_distributed", lambda rank=rank: (rank, 3))
        shares.append(drawn(config, 2))
    for batch in range(3):
        parts = [share[2 * batch : 2 * batch + 2] for share in shares]
        assert sorted(sum(parts, [])) == sorted(whole[6 * batch : 6 * batch + 6])
    for samples in (7, 6):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(training, "start_distributed", lambda rank=rank: (rank, 3))
            parts += [training.shard(Numbers(samples))[i] for i in range(len(training.shard(Numbers(samples))))]
        assert sorted(parts) == list(range(samples))
    with pytest.raises(settings.InputError, match="batch_size=4 does not divide over 3 processes"):
        Batches(Numbers(9), TrainingConfig(batch_size=4), keep)


def test_too_few_samples_are_refused():
    with pytest.raises(settings.InputError, match="3 training samples do not fill one batch of 4"):
        Batches(Numbers(3), TrainingConfig(batch_size=4), keep)


def test_to_device_moves_what_is_nested():
    batch = {"image": torch.zeros(2, 3, 4, 5), "rest": [torch.zeros(2), ("name", 1)]}
    moved = training.to_device(batch)
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert moved["rest"][1] == ("name", 1) and isinstance(moved["rest"], list)


# ------------------------------------------------------------------------------- kill -9, then resume
RESUMABLE = {
    "poly": replace(QUICK, epochs=6, optimizer="adamw", schedule="poly", warmup=3, clip_norm=1.0),
    "plateau": replace(QUICK, epochs=6, seed=7, schedule="plateau", plateau_patience=0, workers=1),
}


def kill_self(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_within_save(file: int) -> None:
    """os.fsync's place taken at the moment of death: half of the file is written."""
    os.truncate(file, os.fstat(file).st_size // 2)
    kill_self()


def on_call(number: int, function, replacement):
    """``function``, but ``replacement`` at its ``number``-th call (from 1)."""
    count = 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return (replacement if count == number else function)(*args, **kwargs)

    return counted


def prepare_child() -> None:
    settings.DEVICE = torch.device("cpu")
    torch.set_num_threads(1)
    # Data-loading workers are to be children of this process, whose death ends them, and not of the server.
    multiprocessing.set_start_method("fork", force=True)


def child_run(folder: Path, config: TrainingConfig, kill: tuple[str, int] | None = None) -> None:
    """One process of a run: train to the end, or until the n-th batch, save or rename kills it."""
    prepare_child()
    target = loss
    if kill and kill[0] == "batch":
        target = on_call(kill[1], loss, kill_self)
    elif kill and kill[0] == "save":
        os.fsync = on_call(kill[1], os.fsync, kill_within_save)
    elif kill and kill[0] == "rename":
        os.replace = on_call(kill[1], os.replace, kill_self)
    batches = Batches(Stripes(), config, shift)
    model, history = run(folder, config, convolutions(), batches=batches, loss=target)
    checkpoints.write({"weights": model.state_dict(), "history": history}, folder / "result.pth")


def child(*arguments) -> multiprocessing.Process:
    process = PROCESSES.Process(target=child_run, args=arguments)
    process.start()
    return process


def exit_code(process) -> int:
    """Wait for a child, however slow the machine; one that hangs is killed."""
    process.join(PATIENCE)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("name", RESUMABLE)
def test_killed_runs_end_bit_identical(tmp_path, name):
    """Killed half-way through a save, in a batch, between two saves, and at random times; then finished."""
    config, rng = RESUMABLE[name], random.Random(name)
    assert exit_code(child(tmp_path / "whole", config)) == 0
    duration = checkpoints.read(tmp_path / "whole" / "last.pth")["state"]["seconds"]
    kills = [("save", rng.randint(1, 2)), ("batch", rng.randint(6, 9)), ("rename", 2), ("batch", rng.randint(1, 4))]
    for kill in kills:
        assert exit_code(child(tmp_path / "killed", config, kill)) == -signal.SIGKILL
    for _ in range(2):
        process = child(tmp_path / "killed", config)
        process.join(rng.uniform(0.1, 0.7) * duration)
        process.kill()
        process.join()
    assert exit_code(child(tmp_path / "killed", config)) == 0
    for file in ("result.pth", "best.pth", "last.pth"):
        whole, killed = (checkpoints.read(tmp_path / folder / file) for folder in ("whole", "killed"))
        assert same(whole["weights"], killed["weights"]), file
    assert len(whole["state"]["history"]) == 6
    assert without_time(whole["state"]["history"]) == without_time(killed["state"]["history"])
    assert whole["scheduler"] == killed["scheduler"]


# --------------------------------------------------------------------------------------- two processes
def child_rank(rank: int, port: int, folder: Path, config: TrainingConfig, kill_at: int = 0) -> None:
    """What torchrun starts: one of two processes that find each other by the environment."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    prepare_child()
    assert training.start_distributed() == (rank, 2)
    target = on_call(kill_at, loss, kill_self) if kill_at else loss
    model, history = run(folder, config, batches=Batches(Stripes(), config, shift), loss=target)
    checkpoints.write({"weights": model.state_dict(), "history": history}, folder / f"rank{rank}.pth")
    dist.destroy_process_group()


def two_ranks(*arguments) -> list[int]:
    """Exit codes of both processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [PROCESSES.Process(target=child_rank, args=(rank, port, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    return [exit_code(process) for process in processes]


def test_two_processes_match_one(tmp_path):
    """At the same global batch, and through a kill of both processes."""
    config = replace(QUICK, epochs=4, schedule="cosine", clip_norm=1.0)
    model, history = run(tmp_path / "one", config, batches=Batches(Stripes(), config, shift))
    assert all(code != 0 for code in two_ranks(tmp_path / "two", config, 13))
    assert checkpoints.load(tmp_path / "two" / "last.pth")["state"]["epoch"] == 2
    assert two_ranks(tmp_path / "two", config) == [0, 0]
    ranks = [checkpoints.read(tmp_path / "two" / f"rank{rank}.pth") for rank in range(2)]
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ranks[0]["weights"][name], tensor, rtol=1e-5, atol=1e-6)
    for rank in ranks:
        for row, expected in zip(without_time(rank["history"]), without_time(history), strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
            assert row["samples"] == 40  # every sample validated once, over both ranks


# ------------------------------------------------------------------------------------------------- CUDA
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixed_precision_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "DEVICE", torch.device("cuda"))
    kinds = set()

    def noting(model: nn.Module, batch: tuple) -> torch.Tensor:
        logits = model(batch[0])
        kinds.add(logits.dtype)
        return nn.functional.cross_entropy(logits, batch[1])

    def check(model: nn.Module) -> dict[str, float]:
        images, labels = training.to_device(Stripes()[:])
        return {"miou": (model(images).argmax(1) == labels).float().mean().item()}

    model, history = run(tmp_path, replace(QUICK, epochs=10), convolutions(), loss=noting, validate=check)
    assert kinds == {torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert history[-1]["loss"] < history[0]["loss"]
    assert same(run(tmp_path, replace(QUICK, epochs=10), convolutions())[0].state_dict(), model.state_dict())

"""The one training loop of all systems.

``fit`` runs on a CPU, a GPU, or, started by ``torchrun``, on several processes; it can be killed at any
moment and resumes from the last finished epoch. Order, augmentation and dropout of an epoch depend on
(seed, epoch) alone, so a resumed run repeats what the killed one would have done, bit for bit on a CPU.
"""

import atexit
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from src import checkpoints, config, settings

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
RESUMED = ("optimizer", "scheduler", "scaler")  # of a Trainer, what a killed run takes up beside the weights
# Learning-rate factor as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "poly": lambda progress: (1 - progress) ** 0.9,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


class NonFiniteLoss(RuntimeError):
    """The loss (or the gradient norm) became NaN or infinite."""


@dataclass(frozen=True)
class FitConfig(config.Config):
    """How to train; every system's Config extends it."""

    seed: int = settings.SEED
    epochs: int = 30
    batch_size: int = 4  # over all processes together
    accumulate: int = 1  # batches per optimiser step
    optimizer: str = "adam"  # adam | adamw | sgd (momentum 0.9)
    lr: float = 1e-4
    weight_decay: float = 0.0
    schedule: str = "constant"  # constant | poly | cosine | plateau (on the monitored metric)
    per_epoch: bool = False  # update poly and cosine once an epoch instead of at every step
    warmup: int = 0  # steps of linear warm-up
    plateau_patience: int = 3
    plateau_factor: float = 0.5
    clip_norm: float = 0.0  # 0: no clipping
    patience: int = 0  # epochs without improvement before stopping; 0: never
    workers: int = 1  # data-loading processes
    amp: bool = True  # mixed precision, where the device has it: see ``autocast``
    compile: bool = False

    def __post_init__(self):
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", (*SCHEDULES, "plateau"))):
            if getattr(self, name) not in allowed:
                raise settings.InputError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        if min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise settings.InputError("epochs, batch_size and accumulate must be at least 1")
        if self.schedule == "plateau" and self.warmup:
            raise settings.InputError("schedule=plateau has no warm-up: set warmup=0")


@dataclass
class State:
    """What a run has done so far: everything a resumed run needs beside weights and optimiser."""

    epoch: int = 0  # finished epochs
    step: int = 0  # optimiser steps taken
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


# ---------------------------------------------------------------------------------------- processes
def start_distributed() -> tuple[int, int]:
    """(rank, world size). Joins the process group when ``torchrun`` has set RANK, else (0, 1)."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if settings.DEVICE.type == "cuda" else "gloo")
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard(dataset: Dataset) -> Dataset:
    """This rank's part of a dataset for evaluation: every world-size-th sample, none twice."""
    rank, world = start_distributed()
    return dataset if world == 1 else Subset(dataset, range(rank, len(dataset), world))


def _reduce(values: list[float], operation: dist.ReduceOp) -> list[float]:
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64).to(settings.DEVICE)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


# --------------------------------------------------------------------------------------------- data
class Order:
    """Batch sampler: this rank's share of every global batch, as (epoch, index) keys; ``epoch`` (from 0) is set."""

    def __init__(self, samples: int, config: FitConfig):
        self.rank, self.world = start_distributed()
        self.samples, self.config, self.epoch = samples, config, 0
        if config.batch_size % self.world:
            raise settings.InputError(f"batch_size={config.batch_size} does not divide over {self.world} processes")
        if samples < config.batch_size:
            raise settings.InputError(f"{samples} training samples do not fill one batch of {config.batch_size}")

    def __len__(self) -> int:
        return self.samples // self.config.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + self.epoch)
        order = torch.randperm(self.samples, generator=generator).tolist()
        size = self.config.batch_size
        for batch in range(len(self)):
            share = order[batch * size : (batch + 1) * size][self.rank :: self.world]
            yield [(self.epoch, index) for index in share]


class _Augmented(Dataset):
    def __init__(self, dataset: Dataset, augment: Callable, seed: int):
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, index)) % 2**63)
            return self.augment(self.dataset[index])


class Batches(DataLoader):
    """Training batches whose order and augmentation depend on (seed, epoch, index) alone.

    ``augment(sample)``, which draws from torch's generator, finds it in a state of its own for each sample
    and epoch, so neither the number of workers nor of processes changes what a sample looks like.
    ``config.batch_size`` counts the samples of all processes. The incomplete batch at the end of an epoch is
    left out: the order is drawn anew each epoch, so other samples miss the next one.
    """

    def __init__(self, dataset: Dataset, config: FitConfig, augment: Callable):
        super().__init__(
            _Augmented(dataset, augment, config.seed),
            batch_sampler=Order(len(dataset), config),
            num_workers=config.workers,
            pin_memory=settings.DEVICE.type == "cuda",
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose order and augmentation the next iteration gives."""
        self.batch_sampler.epoch = epoch


def to_device(batch: Any) -> Any:
    """Move a (nested) batch; image batches (B,C,H,W) become channels-last, as the model's weights are."""
    if isinstance(batch, torch.Tensor):
        form = torch.channels_last if batch.ndim == 4 else torch.preserve_format
        return batch.to(settings.DEVICE, non_blocking=True, memory_format=form)
    if isinstance(batch, dict):
        return {key: to_device(value) for key, value in batch.items()}
    return type(batch)(to_device(item) for item in batch) if isinstance(batch, list | tuple) else batch


# --------------------------------------------------------------------------------------------- loop
def autocast(config: FitConfig):
    """bf16 where the GPU supports it, or the CPU has matrix units for it (AMX); fp16 on older GPUs; else none."""
    kind = settings.DEVICE.type
    usable = kind == "cuda" or (kind == "cpu" and torch.cpu._is_amx_tile_supported())
    half = torch.float16 if kind == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    return torch.autocast(kind, half) if config.amp and usable else nullcontext()


def make_scheduler(optimizer: torch.optim.Optimizer, config: FitConfig, steps: int):
    """The schedule named by the config over ``steps`` optimiser steps an epoch."""
    if config.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience, threshold=0
        )
    factor = SCHEDULES[config.schedule]

    def at(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / config.warmup
        position = step // steps * steps if config.per_epoch else step
        span = max(1, config.epochs * steps - config.warmup)
        return factor(min(1.0, max(0, position - config.warmup) / span))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, at)


class Trainer:
    """The pieces of one run, and the work of one epoch."""

    def __init__(self, model: nn.Module, batches, loss: Callable, config: FitConfig):
        self.rank, self.world = start_distributed()
        self.config, self.batches, self.loss = config, batches, loss
        self.steps = math.ceil(len(batches) / config.accumulate)
        self.model = model.to(settings.DEVICE, memory_format=torch.channels_last)
        self.forward = self._wrap(self.model)
        self.optimizer = OPTIMIZERS[config.optimizer](
            [p for p in model.parameters() if p.requires_grad],
            lr=config.lr,
            weight_decay=config.weight_decay,
            **({"momentum": 0.9} if config.optimizer == "sgd" else {}),
        )
        self.scheduler = make_scheduler(self.optimizer, config, self.steps)
        fp16 = settings.DEVICE.type == "cuda" and config.amp and not torch.cuda.is_bf16_supported()
        self.scaler = torch.amp.GradScaler(settings.DEVICE.type, enabled=fp16)

    def _wrap(self, model: nn.Module) -> nn.Module:
        if self.config.compile:
            model.compile()
        if self.world == 1:
            return model
        if settings.DEVICE.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            return DistributedDataParallel(model, device_ids=[settings.DEVICE.index])
        return DistributedDataParallel(model)

    def epoch(self, state: State) -> float:
        """Train one epoch; returns the mean loss over batches and ranks."""
        settings.seed_everything(self.config.seed * 100_003 + state.epoch * self.world + self.rank)
        self.batches.set_epoch(state.epoch)
        self.forward.train()
        total, count = 0.0, len(self.batches)
        bar = tqdm(self.batches, f"epoch {state.epoch + 1}/{self.config.epochs}", leave=False,
                   disable=self.rank > 0 or not sys.stderr.isatty())  # fmt: skip
        for index, batch in enumerate(bar):
            group_start = index - index % self.config.accumulate
            group = min(self.config.accumulate, count - group_start)
            last = index == group_start + group - 1
            total += self._batch(batch, state, index, group, last)
            if last:
                self._step(state, index)
        return _reduce([total / count], dist.ReduceOp.SUM)[0] / self.world

    def _batch(self, batch: Any, state: State, index: int, group: int, last: bool) -> float:
        """Forward and backward of one batch, its gradient weighted 1/group; returns its loss."""
        hold = nullcontext() if last or self.world == 1 else self.forward.no_sync()
        with hold:
            with autocast(self.config):
                loss = self.loss(self.forward, to_device(batch))
            value = loss.item()
            if _reduce([float(not math.isfinite(value))], dist.ReduceOp.MAX)[0]:
                raise _non_finite(f"loss {value}", state, index)
            self.scaler.scale(loss / group).backward()
        return value

    def _step(self, state: State, index: int) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise _non_finite(f"gradient norm {norm}", state, index)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if self.config.schedule != "plateau":
            self.scheduler.step()

    def save(self, state: State, path: Path) -> None:
        """Write ``last.pth``: a checkpoint plus the state of everything that an epoch changes."""
        parts = {name: getattr(self, name).state_dict() for name in RESUMED}
        checkpoints.save(path, self.model.state_dict(), config=checkpoints.plain(asdict(self.config)),
                         state=asdict(state), **parts)  # fmt: skip

    def resume(self, path: Path) -> State:
        """Take up the run that wrote ``path``; CheckpointError if that was another one."""
        content = checkpoints.load(path)
        checkpoints.require_same_config(self.config, content, path)
        if "state" not in content:
            raise checkpoints.CheckpointError(f"{path} holds weights alone: move it away to start a new run")
        checkpoints.load_weights(self.model, content["weights"], path)
        for name in RESUMED:
            if content[name]:  # a scaler that was off has no state
                getattr(self, name).load_state_dict(content[name])
        return State(**content["state"])


def _non_finite(what: str, state: State, batch: int) -> NonFiniteLoss:
    return NonFiniteLoss(
        f"{what} at step {state.step}, epoch {state.epoch + 1}, batch {batch}; the checkpoints of the last good "
        "epoch are kept. Lower lr, set clip_norm, or look at that batch"
    )


def fit(
    model: nn.Module,
    batches,
    loss: Callable[[nn.Module, Any], torch.Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    config: FitConfig,
    *,
    run_dir: Path,
    monitor: str | None,
    minimize: bool = False,
) -> list[dict[str, float]]:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    ``batches`` is a sized iterable with ``set_epoch(epoch)`` (``Batches``, or a system's own);
    ``loss(model, batch)`` gives a scalar; ``validate(model)`` gives a dict of floats, alike on every rank,
    in which ``monitor`` picks the best epoch (None: nothing is chosen, the last one is kept). ``run_dir`` receives
    ``best.pth``, ``last.pth`` and TensorBoard scalars; a ``last.pth`` that is there already, made with the same
    config, is resumed from. Returns one dict an epoch: epoch, loss, lr, seconds and what ``validate`` gave.

    Raises NonFiniteLoss (the checkpoints of the last good epoch stay), CheckpointError for a ``last.pth``
    of another config, and ValueError for a monitored metric that is NaN.
    """
    trainer = Trainer(model, batches, loss, config)
    last, best = Path(run_dir) / "last.pth", Path(run_dir) / "best.pth"
    state = trainer.resume(last) if last.exists() else State()
    writer = _scalar_writer(run_dir, state) if trainer.rank == 0 else None
    sign = -1 if minimize else 1
    while state.epoch < config.epochs and not _stalled(state, config):
        start = time.monotonic()
        lr = trainer.optimizer.param_groups[0]["lr"]
        row = {"epoch": state.epoch + 1, "loss": trainer.epoch(state), "lr": lr}
        model.eval()
        row |= validate(model)
        improved = _account(state, row, time.monotonic() - start, sign, monitor)
        if config.schedule == "plateau":
            trainer.scheduler.step(sign * row[monitor])
        if writer:
            if improved:
                metric = {"name": monitor, "value": row.get(monitor)}
                checkpoints.save(best, model.state_dict(), config=checkpoints.plain(asdict(config)), step=state.step,
                                 epoch=state.epoch, metric=metric)  # fmt: skip
            _report(writer, row, config.epochs, improved)
            trainer.save(state, last)
    if writer:
        writer.close()
    if trainer.world > 1:
        dist.barrier()
    checkpoints.load_weights(model, checkpoints.load(best)["weights"], best)
    model.eval()
    return state.history


def _stalled(state: State, config: FitConfig) -> bool:
    return bool(config.patience) and state.epoch - state.best_epoch >= config.patience


def _account(state: State, row: dict[str, float], seconds: float, sign: int, monitor: str | None) -> bool:
    """Enter a finished epoch into the state; returns whether it is the best so far."""
    value = sign * row[monitor] if monitor else float(state.epoch)
    if math.isnan(value):
        raise ValueError(f"{monitor} is NaN after epoch {row['epoch']}: no best epoch can be chosen by it")
    state.epoch += 1
    state.seconds += seconds
    row["seconds"] = state.seconds
    state.history.append(row)
    improved = value > state.best
    if improved:
        state.best, state.best_epoch = value, state.epoch
    return improved


def _scalar_writer(run_dir: Path, state: State):
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed by training alone

    return SummaryWriter(str(run_dir), purge_step=state.epoch + 1)


def _report(writer, row: dict[str, float], epochs: int, improved: bool) -> None:
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(name, value, row["epoch"])
    writer.flush()  # a kill must not lose the scalars of an epoch that will not be repeated
    skip = ("epoch", "lr", "seconds")
    values = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in skip)
    mark = " *" if improved else ""
    print(f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.2e}  {values}  {row['seconds']:.0f} s{mark}", flush=True)

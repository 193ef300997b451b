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
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from src import checkpoints, files, settings
from src.config import TrainingConfig

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
# Learning-rate factor as a function of progress in [0, 1].
LR_FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "poly": lambda progress: (1 - progress) ** 0.9,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


class NonFiniteLoss(settings.InputError, RuntimeError):
    """The loss (or the gradient norm) became NaN or infinite."""


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


def _reduce(value: float, operation: dist.ReduceOp) -> float:
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, dtype=torch.float64).to(settings.DEVICE)
    dist.all_reduce(tensor, operation)
    return tensor.item()


# --------------------------------------------------------------------------------------------- data
class Order:
    """Batch sampler: this rank's share of every global batch, as (epoch, index) keys; ``epoch`` (from 0) is set."""

    def __init__(self, samples: int, config: TrainingConfig):
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

    ``augment(sample)`` draws from torch's generator, which is seeded anew for each sample and epoch, so neither
    the number of workers nor of processes changes what a sample looks like.
    ``config.batch_size`` counts the samples of all processes. The incomplete batch at the end of an epoch is
    left out: the order is drawn anew each epoch, so other samples miss the next one.
    """

    def __init__(self, dataset: Dataset, config: TrainingConfig, augment: Callable):
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
        memory_format = torch.channels_last if batch.ndim == 4 else torch.preserve_format
        return batch.to(settings.DEVICE, non_blocking=True, memory_format=memory_format)
    if isinstance(batch, dict):
        return {key: to_device(value) for key, value in batch.items()}
    return type(batch)(to_device(item) for item in batch) if isinstance(batch, list | tuple) else batch


# ---------------------------------------------------------------------------- optimiser and precision
def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser named by the config over the parameters that require a gradient, fused."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig, steps: int):
    """The schedule named by the config over ``steps`` optimiser steps an epoch."""
    if config.schedule == "plateau":
        return ReduceLROnPlateau(
            optimizer, mode="max", factor=config.plateau_factor, patience=config.plateau_patience, threshold=0
        )
    decay_steps = max(1, config.epochs * steps - config.warmup)

    def factor(step: int) -> float:
        if step < config.warmup:
            return (step + 1) / config.warmup
        return LR_FACTORS[config.schedule](min(1.0, (step - config.warmup) / decay_steps))

    return LambdaLR(optimizer, factor)


def autocast(config: TrainingConfig):
    """bf16 where the GPU supports it, or the CPU has matrix units for it (AMX); fp16 on older GPUs; else none."""
    kind = settings.DEVICE.type
    usable = kind == "cuda" or (kind == "cpu" and torch.cpu._is_amx_tile_supported())
    dtype = torch.float16 if _needs_fp16() else torch.bfloat16
    return torch.autocast(kind, dtype) if config.amp and usable else nullcontext()


def _needs_fp16() -> bool:
    return settings.DEVICE.type == "cuda" and not torch.cuda.is_bf16_supported()


def _parallel(model: nn.Module, config: TrainingConfig) -> nn.Module:
    """The model as it is called in training: compiled if the config says so, and on every rank."""
    if config.compile:
        model.compile()
    if start_distributed()[1] == 1:
        return model
    if settings.DEVICE.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[settings.DEVICE.index])
    return DistributedDataParallel(model)


# --------------------------------------------------------------------------------------------- loop
def train_one_epoch(model, batches, loss, optimizer, scheduler, scaler, config: TrainingConfig, state: State) -> float:
    """Train one epoch; returns the mean loss over batches and ranks."""
    rank, world = start_distributed()
    settings.seed_everything(config.seed * 100_003 + state.epoch * world + rank)
    batches.set_epoch(state.epoch)
    model.train()
    total = 0.0
    title = f"epoch {state.epoch + 1}/{config.epochs}"
    hidden = rank > 0 or not sys.stderr.isatty()
    for index, batch in enumerate(tqdm(batches, title, leave=False, disable=hidden)):
        with autocast(config):
            batch_loss = loss(model, to_device(batch))
        value = batch_loss.item()
        if _reduce(float(not math.isfinite(value)), dist.ReduceOp.MAX):
            raise _non_finite(f"loss {value}", state, index)

        optimizer.zero_grad()
        scaler.scale(batch_loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
        if not scaler.is_enabled() and not torch.isfinite(norm):  # an enabled scaler skips such a step
            raise _non_finite(f"gradient norm {norm}", state, index)
        scaler.step(optimizer)
        scaler.update()
        if config.schedule != "plateau":
            scheduler.step()

        state.step += 1
        total += value
    return _reduce(total / len(batches), dist.ReduceOp.SUM) / world


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
    config: TrainingConfig,
    *,
    run_dir: Path,
    monitor: str | None,
    minimize: bool = False,
    fingerprint: str | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    ``batches`` is a sized iterable with ``set_epoch(epoch)`` (``Batches``, or a system's own);
    ``loss(model, batch)`` gives a scalar; ``validate(model)`` gives a dict of floats, alike on every rank,
    in which ``monitor`` picks the best epoch (None: nothing is chosen, the last one is kept). ``run_dir`` receives
    ``best.pth``, ``last.pth`` and TensorBoard scalars; a ``last.pth`` that is there already, made with the same
    config on the same data (where both name its ``fingerprint``), is resumed from.
    Returns one dict an epoch: epoch, loss, lr, seconds and what ``validate`` gave.

    Raises NonFiniteLoss (the checkpoints of the last good epoch stay), CheckpointError for a ``last.pth``
    of another config, other data or other weights to begin with, and InputError for a monitored metric that is NaN.
    """
    rank, world = start_distributed()
    last, best = Path(run_dir) / "last.pth", Path(run_dir) / "best.pth"
    model.to(settings.DEVICE, memory_format=torch.channels_last)
    parallel_model = _parallel(model, config)
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, len(batches))
    scaler = torch.amp.GradScaler(settings.DEVICE.type, enabled=config.amp and _needs_fp16())
    resumable = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    state = _resume(last, model, resumable, config, fingerprint) if last.exists() else State()
    writer = _start_log(run_dir, state) if rank == 0 else None
    sign = -1 if minimize else 1

    while state.epoch < config.epochs and not _stalled(state, config):
        start = time.monotonic()
        lr = optimizer.param_groups[0]["lr"]
        mean_loss = train_one_epoch(parallel_model, batches, loss, optimizer, scheduler, scaler, config, state)
        model.eval()
        row = {"epoch": state.epoch + 1, "loss": mean_loss, "lr": lr} | validate(model)
        improved = _finish_epoch(state, row, time.monotonic() - start, sign, monitor)
        if config.schedule == "plateau":
            scheduler.step(sign * row[monitor])
        if writer:
            if improved:
                progress = {"step": state.step, "epoch": state.epoch}
                metric = {"name": monitor, "value": row.get(monitor)}
                checkpoints.save(best, model.state_dict(), config=config.plain(), metric=metric, **progress)
            _log(writer, row, config.epochs, improved)
            _save(last, model, resumable, config, fingerprint, state)

    if writer:
        writer.close()
    if world > 1:
        dist.barrier()
    checkpoints.load_weights(model, checkpoints.load(best)["weights"], best)
    model.eval()
    return state.history


def _stalled(state: State, config: TrainingConfig) -> bool:
    return bool(config.patience) and state.epoch - state.best_epoch >= config.patience


def _finish_epoch(state: State, row: dict[str, float], seconds: float, sign: int, monitor: str | None) -> bool:
    """Enter a finished epoch into the state; returns whether it is the best so far."""
    value = sign * row[monitor] if monitor else float(state.epoch)
    if math.isnan(value):
        raise settings.InputError(
            f"{monitor} is NaN after epoch {row['epoch']}, so no best epoch can be chosen by it: lower lr, or look at "
            "the validation data"
        )
    state.epoch += 1
    state.seconds += seconds
    row["seconds"] = state.seconds
    state.history.append(row)
    improved = value > state.best
    if improved:
        state.best, state.best_epoch = value, state.epoch
    return improved


# ------------------------------------------------------------------------------------ saving, resuming
def _save(path: Path, model, resumable: dict[str, Any], config: TrainingConfig, fingerprint: str | None, state: State):
    """Write ``last.pth``: a checkpoint plus the state of everything that an epoch changes."""
    parts = {name: part.state_dict() for name, part in resumable.items()}
    weights = model.state_dict()
    checkpoints.save(path, weights, config=config.plain(), fingerprint=fingerprint, state=asdict(state), **parts)


def _resume(path: Path, model, resumable: dict[str, Any], config: TrainingConfig, fingerprint: str | None) -> State:
    """Take up the run that wrote ``path``; CheckpointError if that was another one."""
    content = checkpoints.load(path)
    checkpoints.require_same_config(config, content, path)
    if "state" not in content:
        raise checkpoints.CheckpointError(f"{path} holds weights alone: move it away to start a new run")
    began_with = content.get("fingerprint")  # runs of older versions have none
    if fingerprint and began_with and fingerprint != began_with:
        raise checkpoints.CheckpointError(
            f"{path.parent} holds a run on other data, or from other weights: move {path.parent} away to start "
            "anew, or train with what it began with"
        )
    checkpoints.load_weights(model, content["weights"], path)
    for group, saved in zip(resumable["optimizer"].param_groups, content["optimizer"]["param_groups"], strict=True):
        saved["fused"] = group["fused"]  # older versions fused on a GPU alone
    for name, part in resumable.items():
        if content[name]:  # a scaler that was off has no state
            part.load_state_dict(content[name])
    return State(**content["state"])


def _start_log(run_dir: Path, state: State):
    """TensorBoard's writer, in a run folder without what a killed process left half-written."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed by training alone

    for name in ("last.pth", "best.pth"):
        files.remove_leftovers(Path(run_dir) / name)
    return SummaryWriter(str(run_dir), purge_step=state.epoch + 1)


def _log(writer, row: dict[str, float], epochs: int, improved: bool) -> None:
    for name, value in row.items():
        if name != "epoch":
            writer.add_scalar(name, value, row["epoch"])
    writer.flush()  # a kill must not lose the scalars of an epoch that will not be repeated
    metrics = [f"{name} {value:.4f}" for name, value in row.items() if name not in ("epoch", "lr", "seconds")]
    mark = " *" if improved else ""
    print(
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.2e}  {'  '.join(metrics)}  {row['seconds']:.0f} s{mark}",
        flush=True,
    )

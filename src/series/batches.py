"""What a training step sees, and what it is told: batches of plots, and the loss on one."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from src import settings, training
from src.series import augment
from src.series.data import Labelled
from src.series.evaluate import places
from src.series.generate import CLASSES


class Batches:
    """Shuffled batches {items, labels, where} of ``draw(epoch)``, this process's share of each."""

    def __init__(self, draw: Callable[[int], Labelled], plots: int, config):
        self.rank, self.world = training.start_distributed()
        if config.batch_size % self.world or plots < config.batch_size:
            raise settings.InputError(f"batch_size={config.batch_size} does not divide over {self.world} processes, or "
                                      f"exceeds the {plots} plots to train on")  # fmt: skip
        self.draw, self.plots, self.config, self.epoch = draw, plots, config, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose plots and order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plots // self.config.batch_size

    def __iter__(self) -> Iterator[dict]:
        found, size = self.draw(self.epoch), self.config.batch_size
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + self.epoch)
        order = torch.randperm(len(found), generator=generator)
        for chosen in order[: len(self) * size].split(size):
            chosen = chosen[self.rank :: self.world]
            known = [found.known[k] for k in chosen] if found.known else [{"events": ()}] * len(chosen)
            yield {"items": found.items[chosen], "labels": found.labels[chosen], "where": places(known)}


def loss(net: nn.Module, batch: dict, config) -> torch.Tensor:
    """Cross-entropy of augmented items, with smoothed or mixed labels where the config says so.

    Where events are known, plus the weighted cross-entropy of the network's attention with their places.
    """
    items, where = augment.augment(batch["items"], batch["where"], config)
    targets = F.one_hot(batch["labels"], len(config.classes or CLASSES)).float()
    if config.mixup:
        items, targets = augment.mix(items, targets, config.mixup)
    logits, looks = net(items)
    total = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
    if looks is None or not config.look_weight:
        return total
    return total - config.look_weight * (where * looks).sum(1).mean()

"""What a training step sees, and what it is told: batches of plots, and the loss on one."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from src import training
from src.series import augment
from src.series.data import Labelled
from src.series.evaluate import places
from src.series.generate import CLASSES


class Batches:
    """Shuffled batches {items, labels, where} of ``draw(epoch)``, this process's share of each."""

    def __init__(self, draw: Callable[[int], Labelled], plots: int, config):
        self.draw, self.order = draw, training.Order(plots, config)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose plots and order the next iteration gives."""
        self.order.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict]:
        found = self.draw(self.order.epoch)
        for keys in self.order:
            chosen = [index for _, index in keys]
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

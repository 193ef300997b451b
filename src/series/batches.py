"""What a training step sees, and what it is told: batches of plots, and the loss on one."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from src import training
from src.series.data import Labelled
from src.series.evaluation import places
from src.series.model import flip


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


def flip_some(items: torch.Tensor, where: torch.Tensor, flips: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of a batch, traces (B,2,W) or pictures uint8 (B,3,H,W), each flipped or not, which changes no class.

    ``where`` (B,w), what is known of their events along time, runs backwards where the item does. Draws from torch's
    own generator, which ``training.fit`` seeds for each epoch and process.
    """
    for name in flips:
        coins = torch.rand(len(items), device=items.device) < 0.5
        items = torch.where(coins.reshape(-1, *[1] * (items.ndim - 1)), flip(items, name), items)
        if name == "horizontal":
            where = torch.where(coins[:, None], where.flip(1), where)
    return items, where


def loss(net: nn.Module, batch: dict, config) -> torch.Tensor:
    """Cross-entropy of flipped items.

    Where events are known, plus the weighted cross-entropy of the network's attention with their places.
    """
    items, where = flip_some(batch["items"], batch["where"], config.flips)
    logits, looks = net(items)
    total = F.cross_entropy(logits.float(), batch["labels"])
    if looks is None or not config.activation_weight:
        return total
    return total - config.activation_weight * (where * looks).sum(1).mean()

"""What a training step sees: batches of plots, flipped at random, and the loss on one."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from src import training
from src.labelled import Labelled
from src.series.config import Config
from src.series.evaluation import event_columns
from src.series.model import flip


class Batches:
    """Shuffled batches {items, labels, events} of ``plots_of(epoch)``, this process's share of each.

    ``events`` float32 (B,w): which columns hold recorded events, see `event_columns`.
    """

    def __init__(self, plots_of: Callable[[int], Labelled], count: int, config: Config):
        self.plots_of, self.order = plots_of, training.Order(count, config)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose plots and order the next iteration gives."""
        self.order.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        plots = self.plots_of(self.order.epoch)
        for keys in self.order:
            chosen = [index for _, index in keys]
            known = [plots.known[k] for k in chosen] if plots.known else [{"events": ()}] * len(chosen)
            yield {"items": plots.items[chosen], "labels": plots.labels[chosen], "events": event_columns(known)}


def flip_some(items: torch.Tensor, events: torch.Tensor, flips: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of a batch, envelopes (B,2,W) or pictures uint8 (B,3,H,W), each flipped or not, which changes no class.

    ``events`` (B,w) along time run backwards where the item does. Draws from torch's own generator, which
    ``training.fit`` seeds for each epoch and process.
    """
    for name in flips:
        coins = torch.rand(len(items), device=items.device) < 0.5
        items = torch.where(coins.reshape(-1, *[1] * (items.ndim - 1)), flip(items, name), items)
        if name == "horizontal":
            events = torch.where(coins[:, None], events.flip(1), events)
    return items, events


def loss(net: nn.Module, batch: dict[str, torch.Tensor], config: Config) -> torch.Tensor:
    """Cross-entropy of flipped items.

    Where events are known, plus the weighted cross-entropy of the network's attention with their places.
    """
    items, events = flip_some(batch["items"], batch["events"], config.flips)
    logits, log_attention = net(items)
    total = F.cross_entropy(logits.float(), batch["labels"])
    if log_attention is None or not config.activation_weight:
        return total
    return total - config.activation_weight * (events * log_attention).sum(1).mean()

"""Batches are shuffled and shared; flips change an item and the places of its events alike, and nothing else."""

from dataclasses import replace

import pytest
import torch

from src import settings, training
from src.labelled import Labelled
from src.series.batches import Batches, flip_some, loss
from src.series.config import FLIPS
from src.series.model import views
from src.synthetic.time_series import CLASSES
from tests.series.helpers import TINY, envelopes, pictures

KINDS = {"envelopes": envelopes, "pictures": pictures}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ batches
def numbered(count: int) -> Labelled:
    known = tuple({"length": 40, "events": ((i % 40, i % 40 + 1),)} for i in range(count))
    names = tuple(map(str, range(count)))
    return Labelled(torch.arange(count)[:, None], torch.arange(count) % 9, CLASSES, names, known)


def batches_of(epoch: int = 0, **changes) -> list[dict]:
    batches = Batches(lambda epoch: numbered(50), 50, replace(TINY, **changes))
    batches.set_epoch(epoch)
    assert len(list(batches)) == len(batches)
    return list(batches)


def order(batches: list[dict]) -> list[int]:
    return torch.cat([batch["items"][:, 0] for batch in batches]).tolist()


def test_batches_are_shuffled_anew_each_epoch():
    first = batches_of()
    assert [len(batch["labels"]) for batch in first] == [8] * 6 and len(set(order(first))) == 48
    assert order(batches_of()) == order(first) != sorted(order(first))
    assert order(batches_of(epoch=1)) != order(first) != order(batches_of(seed=1))
    for batch in first:
        assert torch.equal(batch["labels"], batch["items"][:, 0] % 9)
        assert torch.equal(batch["events"].argmax(1), batch["items"][:, 0] % 40)


def test_processes_share_a_batch(monkeypatch):
    alone, ranks = batches_of(), []
    for rank in (0, 1):
        monkeypatch.setattr(training, "start_distributed", lambda rank=rank: (rank, 2))
        ranks.append(batches_of())
    for batch, first, second in zip(alone, *ranks, strict=True):
        assert sorted(order([first]) + order([second])) == sorted(order([batch])) and len(order([first])) == 4


def test_a_batch_must_fit_the_plots():
    with pytest.raises(settings.InputError, match="50 training samples do not fill one batch of 51"):
        batches_of(batch_size=51)


# -------------------------------------------------------------------------------------------------- flips
@pytest.mark.parametrize("kind", KINDS)
def test_flips_are_drawn_for_each_item_and_turn_its_events(kind):
    items, events = KINDS[kind](64), torch.rand(64, 40)
    flipped, turned = flip_some(items, events, FLIPS)
    assert flipped.shape == items.shape and flipped.dtype == items.dtype
    every, counts = views(items, FLIPS), [0] * 4
    for i in range(64):
        (which,) = [k for k, view in enumerate(every) if torch.equal(view[i], flipped[i])]
        counts[which] += 1
        assert torch.equal(turned[i], events[i].flip(0) if which in (1, 3) else events[i])
    assert min(counts) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_no_flips_change_nothing(kind):
    items, events = KINDS[kind](4), torch.rand(4, 40)
    flipped, turned = flip_some(items, events, ())
    assert torch.equal(flipped, items) and torch.equal(turned, events)


# --------------------------------------------------------------------------------------------------- loss
def test_the_loss_by_hand():
    logits, log_attention = torch.randn(4, 9), torch.randn(4, 40).log_softmax(1)
    events = torch.zeros(4, 40)
    events[0, 7] = events[2, 3] = 1
    labels = torch.tensor([0, 3, 8, 3])
    batch = {"items": envelopes(4), "labels": labels, "events": events}
    cross_entropy = -logits.log_softmax(1)[range(4), labels].mean()
    away = -(log_attention[0, 7] + log_attention[2, 3]) / 4
    unweighted = replace(TINY, flips=())
    weighted = replace(unweighted, activation_weight=0.5)
    assert torch.allclose(loss(lambda items: (logits, log_attention), batch, unweighted), cross_entropy)
    assert torch.allclose(loss(lambda items: (logits, log_attention), batch, weighted), cross_entropy + 0.5 * away)
    assert torch.allclose(loss(lambda items: (logits, None), batch, weighted), cross_entropy)


def test_the_loss_is_of_flipped_items():
    items, seen = pictures(9), []
    batch = {"items": items, "labels": torch.arange(9), "events": torch.zeros(9, 40)}

    def net(batch_items):
        seen.append(batch_items)
        return 100 * torch.eye(9), None

    assert float(loss(net, batch, replace(TINY, flips=()))) < 1e-3
    loss(net, batch, TINY)
    assert torch.equal(seen[0], items) and not torch.equal(seen[1], items)

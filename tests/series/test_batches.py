"""Flips change an item and the places of its events alike, and nothing else."""

import pytest
import torch

from src.series.batches import flip_some
from src.series.model import FLIPS, views
from tests.series.systems import on_the_cpu, pictures, traces  # noqa: F401

KINDS = {"traces": lambda count: traces(count), "pictures": lambda count: pictures(count)}
BOTH = tuple(FLIPS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_flips_change_nothing(kind):
    items, where = KINDS[kind](4), torch.rand(4, 40)
    found, after = flip_some(items, where, ())
    assert torch.equal(found, items) and torch.equal(after, where)


@pytest.mark.parametrize("kind", KINDS)
def test_flips_are_drawn_for_each_item_and_turn_its_events(kind):
    items, where = KINDS[kind](64), torch.rand(64, 40)
    found, after = flip_some(items, where, BOTH)
    assert found.shape == items.shape and found.dtype == items.dtype
    every, counts = views(items, BOTH), [0] * 4
    for i in range(64):
        (which,) = [k for k, view in enumerate(every) if torch.equal(view[i], found[i])]
        counts[which] += 1
        assert torch.equal(after[i], where[i].flip(0) if which in (1, 3) else where[i])
    assert min(counts) >= 6


def test_one_flip_alone():
    items = traces(32)
    found, where = flip_some(items, torch.rand(32, 40), ("vertical",))
    upside_down = views(items, ("vertical",))[1]
    assert all(torch.equal(a, b) or torch.equal(a, c) for a, b, c in zip(found, items, upside_down, strict=True))
    assert not torch.equal(found, items) and not torch.equal(found, upside_down)


def test_the_same_seed_draws_the_same():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(flip_some(traces(16), torch.zeros(16, 40), BOTH)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])

"""Each augmentation does what it says, and leaves the rest of an item alone."""

from dataclasses import replace

import pytest
import torch

from src.series.augment import augment, mix
from src.series.model import views
from tests.series.rooms import TINY, on_the_cpu, pictures, traces  # noqa: F401

STILL = replace(TINY, flips=())
KINDS = {"traces": lambda count: traces(count), "pictures": lambda count: pictures(count)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def changed(items: torch.Tensor, **settings) -> torch.Tensor:
    """Items under one augmentation; what is known of their events must not be touched."""
    where = torch.rand(len(items), 40)
    found, after = augment(items, where, replace(STILL, **settings))
    assert found.shape == items.shape and found.dtype == items.dtype and torch.equal(after, where)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_asked_for_is_nothing_done(kind):
    items = KINDS[kind](4)
    assert torch.equal(changed(items), items)


@pytest.mark.parametrize("kind", KINDS)
def test_flips_are_drawn_for_each_item_and_turn_its_events(kind):
    items, where = KINDS[kind](64), torch.rand(64, 40)
    found, after = augment(items, where, TINY)
    every, counts = views(items, TINY.flips), [0] * 4
    for i in range(64):
        (which,) = [k for k, view in enumerate(every) if torch.equal(view[i], found[i])]
        counts[which] += 1
        assert torch.equal(after[i], where[i].flip(0) if which in (1, 3) else where[i])
    assert min(counts) >= 6


def test_one_flip_alone():
    items = traces(32)
    found, where = augment(items, torch.rand(32, 40), replace(TINY, flips=("vertical",)))
    upside_down = views(items, ("vertical",))[1]
    assert all(torch.equal(a, b) or torch.equal(a, c) for a, b, c in zip(found, items, upside_down, strict=True))
    assert not torch.equal(found, items) and not torch.equal(found, upside_down)


# --------------------------------------------------------------------------------------------------- noise
def test_noise_moves_a_line_and_keeps_its_thickness():
    items = traces(40)
    found = changed(items, noise=0.05).float() - items.float()
    assert float(found.std()) == pytest.approx(0.05, rel=0.03) and abs(float(found.mean())) < 0.002
    assert torch.allclose(found[:, 0], found[:, 1], atol=2**-10)
    assert abs(float((found[0, 0] * found[1, 0]).mean())) < 0.05**2 / 4  # other noise for another item


def test_noise_of_pictures_does_not_wrap_around():
    grey, white = (torch.full((2, 3, 40, 48), level, dtype=torch.uint8) for level in (128, 255))
    found = changed(grey, noise=0.1).float()
    assert float(found.std()) == pytest.approx(25.5, rel=0.05) and float(found.mean()) == pytest.approx(128, abs=1.5)
    assert int(changed(white, noise=0.1).min()) > 100


# -------------------------------------------------------------------------------------------------- cutout
@pytest.mark.parametrize("share", [0.1, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_cutout_hides_one_stretch_of_the_time(kind, share):
    items = KINDS[kind](60)
    if kind == "pictures":
        items.clamp_(max=254)  # no white yet
    width = items.shape[-1]
    found = changed(items, cutout=share)
    hidden = (found != items).flatten(1, -2).any(1)
    starts = hidden.float().argmax(1)
    assert all(abs(int(count) - share * width) <= 1 for count in hidden.sum(1))
    for row, after, start, count in zip(hidden, found, starts, hidden.sum(1), strict=True):
        assert bool(row[start : start + count].all())  # in one piece
        inside = after[..., start : start + count].float()
        assert bool((inside == (255 if kind == "pictures" else inside[..., :1])).all())
    assert starts.min() < 0.1 * width and (starts + hidden.sum(1)).max() > 0.9 * width and len(starts.unique()) > 15


def test_a_hidden_stretch_of_a_trace_is_its_mean_line():
    items = traces(3)
    found, mean = changed(items, cutout=0.3), items.float().mean(2)
    for i in range(3):
        column = int((found[i] != items[i]).any(0).float().argmax())
        assert torch.allclose(found[i, :, column].float(), mean[i], atol=1e-3)


# ---------------------------------------------------------------------------------------- pictures alone
def test_rotation_and_colour_do_not_touch_traces():
    items = traces(4)
    assert torch.equal(changed(items, rotation=20.0, color_jitter=0.5), items)


def test_rotation_is_bounded_and_fills_with_white():
    line = torch.full((30, 3, 64, 64), 255, dtype=torch.uint8)
    line[:, :, 32:34] = 0
    found = changed(line, rotation=10.0)[:, 0].float()
    middle = [((255 - found[:, :, x]) * torch.arange(64)).sum(1) / (255 - found[:, :, x]).sum(1) for x in (12, 52)]
    degrees = torch.atan((middle[1] - middle[0]) / 40).rad2deg()
    assert degrees.abs().max() < 10.8 and degrees.max() > 5 and degrees.min() < -5
    black = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    assert (changed(black, rotation=40.0)[:, :, 0, 0] == 255).any()


def test_colour_changes_brightness_by_a_share_of_it():
    """A grey picture has no contrast to change."""
    grey = torch.full((60, 3, 8, 8), 100, dtype=torch.uint8)
    found = changed(grey, color_jitter=0.3)[:, 0, 0, 0].float()
    assert found.min() >= 69 and found.max() <= 131 and found.max() - found.min() > 40


def test_colour_changes_contrast():
    halves = torch.full((60, 3, 8, 8), 100, dtype=torch.uint8)
    halves[..., 4:] = 140
    found = changed(halves, color_jitter=0.3).float()
    ratio = found[:, 0, 0, 7] / found[:, 0, 0, 0]  # which brightness leaves alone
    assert ratio.max() - ratio.min() > 0.1 and ratio.min() > 1


# --------------------------------------------------------------------------------------------------- mixup
@pytest.mark.parametrize("kind", KINDS)
def test_mixup_blends_items_and_labels_alike(kind):
    """Every item is of one value, so that what it is blended of can be read from its targets."""
    values = torch.arange(6).float() * (40 if kind == "pictures" else 0.2)
    items = (
        values.reshape(6, *[1] * (3 if kind == "pictures" else 2)).expand_as(KINDS[kind](6)).to(KINDS[kind](6).dtype)
    )
    weights = set()
    for _ in range(5):
        found, targets = mix(items, torch.eye(6), 1.0)
        assert found.dtype == items.dtype and torch.allclose(targets.sum(1), torch.ones(6), atol=1e-5)
        assert bool(((targets > 0).sum(1) <= 2).all())
        expected = (targets @ values).reshape(6, *[1] * (items.ndim - 1)).expand_as(items)
        assert torch.allclose(found.float(), expected, atol=1.0 if kind == "pictures" else 2e-3)
        weights.add(round(float(targets[targets > 0][0]), 3))
    assert len(weights) > 3


def test_a_small_alpha_mixes_little():
    """Beta(a, a) lies near 0 and 1 for small a, in the middle for large."""
    spread = {alpha: torch.stack([mix(traces(2), torch.eye(2), alpha)[1].max() for _ in range(100)]).mean()
              for alpha in (0.05, 20.0)}  # fmt: skip
    assert spread[0.05] > 0.93 and spread[20.0] < 0.85


def test_the_same_seed_draws_the_same():
    config = replace(TINY, noise=0.05, cutout=0.1)
    torch.manual_seed(1)
    first = augment(traces(4), torch.zeros(4, 40), config)[0]
    torch.manual_seed(1)
    assert torch.equal(augment(traces(4), torch.zeros(4, 40), config)[0], first)
    assert not torch.equal(augment(traces(4), torch.zeros(4, 40), config)[0], first)

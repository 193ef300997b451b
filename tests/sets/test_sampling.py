"""Every set holds one odd image and no more; classes, images and positions are drawn uniformly."""

from collections import Counter

import pytest
import torch

from src import settings
from src.labelled import Labelled
from src.sets.sampling import Sampler, Sets, check, distinct, fixed_sets
from tests.sets.conftest import CLASSES

UNEQUAL = (10, 31, 12, 11, 47)


def labelled(*counts: int) -> Labelled:
    """Images of one pixel, in random order, counts[k] of class k."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    names = tuple(f"{CLASSES[k]}/{i:03d}" for i, k in enumerate(labels.tolist()))
    return Labelled(torch.zeros(len(labels), 3, 1, 1), labels, CLASSES[: len(counts)], names)


def sampler_of(images: Labelled) -> Sampler:
    return Sampler(images.labels, images.classes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_uniform(counts: torch.Tensor) -> None:
    """Every count within five standard deviations of an equal share."""
    total, share = int(counts.sum()), 1 / len(counts)
    assert ((counts / total - share).abs() < 5 * (share * (1 - share) / total) ** 0.5).all(), counts


# -------------------------------------------------------------------------------------------------- sets
def test_a_set_is_nine_of_one_class_and_one_of_another():
    images = labelled(*UNEQUAL)
    sets = sampler_of(images).draw(3000, generator())
    assert sets.indices.shape == (3000, 10) and sets.indices.dtype == sets.position.dtype == torch.int64
    for indices, position in zip(sets.indices.tolist(), sets.position.tolist(), strict=True):
        classes = [int(images.labels[i]) for i in indices]
        odd = classes.pop(position)
        assert len(set(classes)) == 1 and odd not in classes and len(set(indices)) == 10


@pytest.mark.parametrize("size", [3, 7, 10])
def test_positions_and_classes_are_uniform(size):
    images = labelled(*UNEQUAL)
    sets = sampler_of(images).draw(40_000, generator(), size)
    assert_uniform(torch.bincount(sets.position, minlength=size))
    classes = images.labels[sets.indices]
    anchor = classes.mode(1).values
    odd = classes.gather(1, sets.position[:, None])[:, 0]
    assert_uniform(torch.bincount(anchor, minlength=5))
    pairs = torch.bincount(anchor * 5 + odd, minlength=25).reshape(5, 5)
    assert (pairs.diagonal() == 0).all()
    assert_uniform(pairs[~torch.eye(5, dtype=torch.bool)])
    assert check(sets, images.labels)["images"] == len(images)


@pytest.mark.parametrize("labels", [labelled(12, 10, 30).labels, torch.tensor([5, 2, 4]).repeat(11)])
def test_every_image_of_a_class_is_as_likely_as_the_others(labels):
    sets = Sampler(labels, CLASSES).draw(20_000, generator())
    is_odd = torch.zeros_like(sets.indices, dtype=torch.bool).scatter(1, sets.position[:, None], True)
    for of_role in (sets.indices[is_odd], sets.indices[~is_odd]):
        counts = torch.bincount(of_role, minlength=len(labels))
        for label in labels.unique():
            assert_uniform(counts[labels == label])


def test_every_subset_of_distinct_numbers_is_as_likely_as_the_others():
    below = torch.tensor([5, 3, 7]).repeat_interleave(20_000)
    numbers = distinct(below, 3, generator()).sort(1).values
    assert (numbers[:, 1:] > numbers[:, :-1]).all() and (numbers >= 0).all() and (numbers < below[:, None]).all()
    for top, subsets in ((5, 10), (7, 35)):
        rows, counts = numbers[below == top].unique(dim=0, return_counts=True)
        assert len(rows) == subsets
        assert_uniform(counts)
    assert (numbers[below == 3] == torch.arange(3)).all()


def test_the_same_generator_draws_the_same_sets():
    images = labelled(*UNEQUAL)
    sampler, drawing = sampler_of(images), generator(5)
    first, second = sampler.draw(50, drawing), sampler.draw(50, drawing)
    assert not torch.equal(first.indices, second.indices) and not torch.equal(first.position, second.position)
    state = torch.random.get_rng_state()
    assert all(map(torch.equal, fixed_sets(images, 50, 5), first))
    assert not torch.equal(fixed_sets(images, 50, 6).indices, first.indices)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sets_without_an_odd_image():
    images = labelled(*UNEQUAL)
    sets = fixed_sets(images, 2000, 0, odd=False)
    classes = images.labels[sets.indices]
    assert (classes == classes[:, :1]).all() and (sets.position == -1).all()
    assert all(len(set(row)) == 10 for row in sets.indices.tolist())
    assert_uniform(torch.bincount(classes[:, 0]))


def test_a_class_that_is_too_small_is_named():
    images = labelled(20, 9, 20)
    with pytest.raises(settings.InputError, match="bee has 9 images: too few for sets of 10"):
        fixed_sets(images, 5, 0)
    check(fixed_sets(images, 500, 0, size=9), images.labels)
    few = images.subset((images.labels > 0).nonzero()[:, 0])  # bee is the first of the classes left
    with pytest.raises(settings.InputError, match="bee has 9 images"):
        fixed_sets(few, 5, 0)
    with pytest.raises(settings.InputError, match="at least two classes"):
        fixed_sets(labelled(20), 5, 0)


# -------------------------------------------------------------------------------------------------- pools
def test_a_pool_is_so_many_images_of_so_many_classes():
    images = labelled(*UNEQUAL)
    sampler, drawing, chosen = sampler_of(images), generator(), Counter()
    for _ in range(500):
        pool = sampler.pool(3, 10, drawing)
        assert len(pool.unique()) == 30
        grouped = images.labels[pool].reshape(3, 10)
        assert (grouped == grouped[:, :1]).all() and len(grouped[:, 0].unique()) == 3
        chosen.update(grouped[:, 0].tolist())
    assert_uniform(torch.tensor([chosen[k] for k in range(5)]))


@pytest.mark.parametrize("classes, each", [(6, 10), (2, 11)])
def test_a_pool_that_does_not_fit_is_refused(classes, each):
    with pytest.raises(settings.InputError, match=f"{classes} classes x {each} images.*5 classes.*ant has 10 images"):
        sampler_of(labelled(*UNEQUAL)).pool(classes, each, generator())


# -------------------------------------------------------------------------------------------------- check
def test_check_describes_good_sets():
    images = labelled(*UNEQUAL)
    sets = fixed_sets(images, 400, 0)
    largest = max(Counter(sets.position.tolist()).values())
    assert check(sets, images.labels) == {
        "sets": 400,
        "images": len(set(sets.indices.flatten().tolist())),
        "largest_share": pytest.approx(largest / 400),
    }


def spoil(kind: str, images: Labelled, sets: Sets) -> Sets:
    """The same sets, one of them (or, for positions, each) broken."""
    indices, position = sets.indices.clone(), sets.position.clone()
    row, odd = indices[7], int(position[7])  # a view: what is changed in it is changed in indices
    normal, other = (odd + 1) % 10, (odd + 2) % 10
    label, odd_label = int(images.labels[row[normal]]), int(images.labels[row[odd]])
    third = next(k for k in range(5) if k not in (label, odd_label))
    used = set(row.tolist())
    if kind == "twice":
        row[normal] = row[other].clone()
    elif kind == "two odd":
        row[normal] = (images.labels == third).nonzero()[0, 0]
    elif kind == "two odd of one class":
        row[normal] = next(i for i in (images.labels == odd_label).nonzero()[:, 0].tolist() if i not in used)
    elif kind == "none odd":
        row[odd] = next(i for i in (images.labels == label).nonzero()[:, 0].tolist() if i not in used)
    elif kind == "elsewhere":
        position[7] = normal
    elif kind == "always last":
        rows = torch.arange(len(position))
        indices[rows, position], indices[:, 9] = sets.indices[:, 9], sets.indices[rows, position]
        position[:] = 9
    return Sets(indices, position)


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("twice", "occurs twice"),
        ("two odd", "exactly one odd image"),
        ("two odd of one class", "exactly one odd image"),
        ("none odd", "exactly one odd image"),
        ("elsewhere", "at the position named"),
        ("always last", "not uniform"),
    ],
)
def test_check_refuses_broken_sets(kind, reason):
    images = labelled(*UNEQUAL)
    with pytest.raises(ValueError, match=reason):
        check(spoil(kind, images, fixed_sets(images, 400, 0)), images.labels)

"""Labelled items are chosen by index and by class, with all that belongs to them."""

import pytest
import torch

from src import settings
from src.labelled import Labelled

LABELS = torch.tensor([0, 2, 1, 2, 0])
ANIMALS = Labelled(10 * torch.arange(5)[:, None], LABELS, ("ant", "bee", "cat", "dog"), tuple("vwxyz"))


def test_a_subset_keeps_what_belongs_together():
    known = tuple({"number": number} for number in range(5))
    chosen = Labelled(ANIMALS.items, LABELS, ANIMALS.classes, ANIMALS.names, known).subset(torch.tensor([3, 0]))
    assert len(chosen) == 2 and chosen.items[:, 0].tolist() == [30, 0] and chosen.labels.tolist() == [2, 0]
    assert chosen.names == ("y", "v") and chosen.known == ({"number": 3}, {"number": 0})
    assert chosen.classes == ANIMALS.classes
    assert ANIMALS.subset(torch.tensor([3, 0])).known == ()


def test_items_of_some_classes():
    indices = ANIMALS.of(("cat", "bee"))
    assert indices.dtype == torch.int64 and indices.tolist() == [1, 2, 3]
    assert ANIMALS.of(("dog",)).tolist() == []  # a class may have no item
    with pytest.raises(settings.InputError, match="no class eel, fly; there are ant, bee, cat, dog"):
        ANIMALS.of(("fly", "ant", "eel"))

"""Figures of the road system that only notebooks draw."""

import matplotlib.pyplot as plt
import torch
from torchvision import tv_tensors

from src.road import data, figures
from src.road.config import Config


class Scenes:
    """Two grey scenes."""

    classes = data.StreetHazards.classes

    def __getitem__(self, index: int) -> dict:
        image = torch.full((3, 64, 96), 100 + 50 * index, dtype=torch.uint8)
        mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
        return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask), "name": str(index)}


def test_pasted_examples_are_alike_in_every_run():
    config = Config(image_size=(64, 96))
    first, second = (figures.pasted_examples(Scenes(), config, [0, 1]) for _ in range(2))
    assert [axis.get_title() for axis in first.axes] == 2 * ["training view", "pasted pixels"]
    for one, other in zip(first.axes, second.axes, strict=True):
        assert (one.images[0].get_array() == other.images[0].get_array()).all()
    plt.close("all")

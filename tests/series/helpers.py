"""What the tests of the series system are made of: a tiny config, networks of known output, plots in no time."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from src import series
from src.labelled import Labelled
from src.synthetic import series_raster, time_series
from src.synthetic.time_series import CLASSES

THREE = ("mean_shift", "point_anomaly", "volatility")
TINY = series.Config(
    dataset="plots",
    width=4,
    dropout=(0.1, 0.1, 0.1),
    epochs=2,
    batch_size=8,
    optimizer="adamw",
    lr=3e-3,
    amp=False,
    workers=0,
)


class KnownOutput(nn.Module):
    """A network whose items are its logits (B,classes), times ``factor``, with ``maps`` for activation maps."""

    def __init__(self, factor: float = 1.0, maps: torch.Tensor | None = None):
        super().__init__()
        self.factor, self.maps = nn.Parameter(torch.tensor(factor)), maps

    def forward(self, items: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.factor * items, None

    def activation_maps(self, items: torch.Tensor) -> torch.Tensor:
        return self.maps[: len(items)]


def envelopes(count: int, seed: int = 0) -> torch.Tensor:
    """Envelopes float16 (count,2,640) of lines of some thickness, between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    lower = torch.rand(count, 1, 640, generator=generator) * 0.8
    return torch.cat([lower + 0.05 + 0.15 * torch.rand(count, 1, 640, generator=generator), lower], 1).half()


def pictures(count: int, size: tuple[int, int] = (40, 48), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def labelled(items: torch.Tensor, labels: Iterable[int], classes: tuple[str, ...] = CLASSES) -> Labelled:
    """Items as a split, called by their class and number."""
    labels = torch.tensor(list(labels))
    return Labelled(items, labels, classes, tuple(f"{classes[k]}/{i:03d}.png" for i, k in enumerate(labels.tolist())))


def state(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def write_plots(root: Path, counts: dict[str, int]) -> dict[str, time_series.Series]:
    """Write root/<split>/<class>/NNN.png, drawn without matplotlib; returns the series by their names in metadata."""
    written = {}
    for split, count in counts.items():
        for label in CLASSES:
            for number in range(count):
                one, name = time_series.generate(label, number, split), f"{split}/{label}/{number:03d}"
                path = root / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                plot = series_raster.picture(one.values, (series_raster.HEIGHT, series_raster.WIDTH))
                Image.fromarray(np.ascontiguousarray(plot.transpose(1, 2, 0))).save(path, compress_level=1)
                written[name] = one
    return written

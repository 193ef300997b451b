"""Measures the assembly of training sets: as index tensors against set by set. Not collected by pytest.

    python -m tests.benchmark_sets [--images 50000] [--width 512] [--batches 300] [--json OUT]

Both ways give batches of 32 sets of ten features, on the device, from the same random features of 100 classes of equal
size. Index tensors: one ``Sampler.draw`` an epoch, one gather a batch. Set by set: a Dataset whose items are sets
drawn with Python's ``random``, put together by a DataLoader in this process and by two worker processes, which are
started and warmed up before the clock. Times are wall seconds, the median of five rounds, in which the ways take turns.
Then the same with a training step on every batch, of the one-block attention and of the transformer.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from src import settings, training
from src.sets.config import SET_SIZE
from src.sets.model import SetAttention, SetTransformer
from src.sets.sampling import Sampler, check
from tests.benchmarking import run

CLASSES, BATCH, ROUNDS, WORKERS = 100, 32, 5, (0, 2)
SEED = 0
NAMES = tuple(map(str, range(CLASSES)))
PROTOCOL = "wall time, median of five rounds in which the ways take turns, after one that warms up"
HEADS = {"attention": partial(SetAttention, width=512), "transformer": SetTransformer}


class OneByOne(Dataset):
    """A set an item: features (10,F) and the position of the odd one."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, count: int):
        self.features, self.count = features, count
        self.members = [(labels == label).nonzero()[:, 0].tolist() for label in range(CLASSES)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        anchor, other = random.sample(range(CLASSES), 2)
        chosen = random.sample(self.members[anchor], SET_SIZE - 1)
        position = random.randrange(SET_SIZE)
        chosen.insert(position, random.choice(self.members[other]))
        return self.features[chosen], position


def index_tensors(features: torch.Tensor, labels: torch.Tensor, batches: int) -> Callable[[], Iterator]:
    """A call that gives the batches of one round, drawn and gathered on the device."""
    features, sampler = features.to(settings.DEVICE), Sampler(labels.to(settings.DEVICE), NAMES)
    generator = torch.Generator(settings.DEVICE).manual_seed(0)

    def draw() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        sets = sampler.draw(batches * BATCH, generator)
        for indices, position in zip(sets.indices.split(BATCH), sets.position.split(BATCH), strict=True):
            yield F.embedding(indices, features), position

    return draw


def loader(features: torch.Tensor, labels: torch.Tensor, batches: int, workers: int) -> DataLoader:
    """The batches of one round, put together set by set."""
    return DataLoader(
        OneByOne(features, labels, batches * BATCH),
        BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=settings.DEVICE.type == "cuda",
    )


def seconds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median wall time of a round of each way, which gives batches (features, position)."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):  # the first warms up
        for name, batches in ways.items():
            start = time.perf_counter()
            for batch in batches():
                moved = training.to_device(batch)
            float(moved[0].sum())  # a GPU has then done its work
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def training_rounds(ways: dict[str, Callable], make: Callable[[int], nn.Module], width: int) -> dict[str, float]:
    """Seconds of a round of each way with a step of AdamW on every batch."""
    net = make(width).to(settings.DEVICE)
    optimizer = torch.optim.AdamW(net.parameters())

    def trained(batches: Callable) -> Iterator:
        for features, position in batches():
            features, position = training.to_device((features, position))
            F.cross_entropy(net(features), position).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield (position,)

    return seconds({name: partial(trained, batches) for name, batches in ways.items()})


def measure(images: int, width: int, batches: int) -> dict:
    """Microseconds a set and how many times faster index tensors are."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    features, labels = torch.randn(images, width), torch.arange(images) % CLASSES
    check(Sampler(labels, NAMES).draw(1000, torch.Generator().manual_seed(SEED)), labels)
    ways: dict[str, Callable] = {"index_tensors": index_tensors(features, labels, batches)}
    for workers in WORKERS:
        made = loader(features, labels, batches, workers)
        ways[f"dataloader_{workers}_workers"] = made.__iter__
    taken = {name: 1e6 * time / (batches * BATCH) for name, time in seconds(ways).items()}
    own, steps = taken["index_tensors"], {}
    for name, make in HEADS.items():
        seconds_of = training_rounds(ways, make, width)
        steps[name] = {
            way: time / seconds_of["index_tensors"] for way, time in seconds_of.items() if way != "index_tensors"
        }
    return {
        "us_per_set": taken,
        "times_faster": {name: time / own for name, time in taken.items() if name != "index_tensors"},
        "training_times_faster": steps,
        "images": images,
        "classes": CLASSES,
        "width": width,
        "set_size": SET_SIZE,
        "batch_size": BATCH,
        "batches": batches,
        "rounds": ROUNDS,
    }


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    data = {"features": "random numbers", "images": options.images, "width": options.width}
    return {"seed": SEED}, data, measure(options.images, options.width, options.batches)


def show(metrics: dict) -> None:
    for kind in ("us_per_set", "times_faster"):
        print(kind, "  ".join(f"{name} {value:.1f}" for name, value in metrics[kind].items()))
    print("training", metrics["training_times_faster"])


def main() -> None:
    """Record: assets/results/sets/assembly_speed.json."""
    defaults = {"images": 50_000, "width": 512, "batches": 300}
    options = {name: {"type": int, "default": value} for name, value in defaults.items()}
    run("tests.benchmark_sets", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

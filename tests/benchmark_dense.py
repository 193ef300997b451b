"""Measures `dense` against patch by patch, for one network and one image. Not collected by pytest.

    python -m tests.benchmark_dense [--size 256] [--patch-size 33] [--json OUT]

Times are wall seconds of one process, the network untrained (its weights do not change the work). Patch by patch is
timed on a part of the patches, given below, and scaled up: all of them are the same work.
"""

import time

import torch
from torch import nn

from src.defects.dense import dense, pad
from src.defects.model import PatchNet
from tests.benchmarking import run

SAMPLE = {"single": 1024, "batched": 4096}  # patches timed; batches of 64
SEED = 0
PROTOCOL = "wall seconds of one process for every pixel of one image, the second of two calls"


def multiplications(net: PatchNet, side: int, dilated: bool) -> int:
    """Of one pass over an image of ``side`` pixels: every position kept (``dilated``), or a single patch."""
    total = 0
    for layer in net:
        if isinstance(layer, nn.MaxPool2d):
            side = side if dilated else side // 2
        elif isinstance(layer, nn.Conv2d):
            side = side if dilated else side - layer.kernel_size[0] + 1
            total += side * side * layer.weight.numel()
    return total


def seconds(work) -> float:
    """Wall time of one call, after a first that warms up."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(size: int, patch_size: int) -> dict:
    """Seconds for every pixel of one image: dense, in batches of 64 patches, one patch at a time."""
    torch.manual_seed(SEED)
    net = PatchNet(patch_size).to(memory_format=torch.channels_last).eval()
    image = torch.randn(1, 3, size, size).to(memory_format=torch.channels_last)
    patches = pad(image, patch_size).unfold(2, patch_size, 1).unfold(3, patch_size, 1)
    patches = patches[0, :, ::7].flatten(1, 2).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    single, batched = patches[: SAMPLE["single"]], patches[: SAMPLE["batched"]]
    times = {
        "dense_s": seconds(lambda: dense(net, image)),
        "batched_s": seconds(lambda: [net(batch) for batch in batched.split(64)]) * size**2 / len(batched),
        "single_s": seconds(lambda: [net(patch) for patch in single.split(1)]) * size**2 / len(single),
    }
    ratio = size**2 * multiplications(net, patch_size, False) / multiplications(net, size, True)
    return times | {
        "times_faster_batched": times["batched_s"] / times["dense_s"],
        "times_faster_single": times["single_s"] / times["dense_s"],
        "flop_ratio": ratio,
        "size": size,
        "patch_size": patch_size,
        "patches_timed": SAMPLE,
    }


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    return {"seed": SEED}, {"image": "random numbers"}, measure(options.size, options.patch_size)


def show(metrics: dict) -> None:
    print("  ".join(f"{key} {value:.2f}" for key, value in metrics.items() if isinstance(value, float)))


def main() -> None:
    """Record: assets/results/defects/dense_speed.json."""
    options = {"size": {"type": int, "default": 256}, "patch-size": {"type": int, "default": 33}}
    run("tests.benchmark_dense", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

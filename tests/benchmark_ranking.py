"""Measures `PixelRanking`: how tight its bounds are, how fast and how small it is. Not collected by pytest.

    python -m tests.benchmark_ranking accuracy [--json OUT]
    python -m tests.benchmark_ranking speed [--json OUT]
    python -m tests.benchmark_ranking memory [--images 1500] [--json OUT]

Every command is one process, so that no measurement inherits the memory of another. Times are wall and CPU seconds, the
least of some repetitions, on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from src.metrics import PixelRanking, SortedScores
from tests.test_metrics import reference

IMAGE = 1280 * 720  # pixels of an image, the natural size of an update
AREAS = ("aupr", "auroc")

DISTRIBUTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda normal: normal,
    "cauchy": lambda normal: normal / np.abs(np.roll(normal, 1)).clip(1e-6),
    "lognormal": lambda normal: np.exp(2 * normal),
    "tied": lambda normal: np.round(normal, 2),
}


def draw(kind: str, pixels: int, positives: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 scores and bool labels (pixels,), the positives 1.5 standard deviations higher."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(pixels) < positives
    normal = rng.standard_normal(pixels, dtype=np.float32) + np.float32(1.5) * labels
    return torch.from_numpy(DISTRIBUTIONS[kind](normal).astype(np.float32)), torch.from_numpy(labels)


def stream(scores: torch.Tensor, labels: torch.Tensor) -> PixelRanking:
    result = PixelRanking()
    for part in zip(scores.split(IMAGE), labels.split(IMAGE), strict=True):
        result.update(*part)
    return result


def accuracy(_: argparse.Namespace) -> dict[str, Any]:
    """The bound and the true error of every number, by distribution, size and base rate.

    Tied scores must be exact; their bound does not know it.
    """
    cases = [(10**6, 200), (10**6, 10**4), (5 * 10**6, 200)]
    rows = []
    for kind in DISTRIBUTIONS:
        for pixels, positives in cases:
            scores, labels = draw(kind, pixels, positives)
            result = stream(scores, labels).compute()
            truth = reference(scores.numpy(), labels.numpy())
            errors = {name: abs(bounded.value - truth[name]) for name, bounded in result.items()}
            row = {"scores": kind, "pixels": pixels, "positives": positives}
            row["bound"] = {name: bounded.error for name, bounded in result.items()}
            row["error"] = errors
            row["certified"] = all(errors[name] <= row["bound"][name] + 1e-12 for name in errors)
            rows.append(row)
            worst = ", ".join(f"{name} {errors[name]:.1e} <= {row['bound'][name]:.1e}" for name in errors)
            print(f"{kind:10s} {positives:6d} in {pixels:9d}: {worst}", flush=True)
    tight = all(row["bound"][name] <= 1e-4 for row in rows if row["scores"] != "tied" for name in AREAS)
    exact = all(row["error"][name] <= 1e-12 for row in rows if row["scores"] == "tied" for name in row["error"])
    protocol = "|value - scikit-learn| against the certified bound, float32 scores, updates of one image"
    certified = all(row["certified"] for row in rows)
    return {
        "protocol": protocol,
        "all_certified": certified,
        "all_within_1e-4": tight,
        "ties_exact": exact,
        "rows": rows,
    }


def timed(action: Callable[[], Any], repetitions: int = 1) -> tuple[Any, dict[str, float]]:
    """The result, and the least wall and CPU seconds of some repetitions."""
    wall, cpu = [], []
    for _ in range(repetitions):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        result = action()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return result, {"wall_s": min(wall), "cpu_s": min(cpu)}


def faster(pixels: int, repetitions: int) -> dict[str, Any]:
    """All pixels, image by image, against scikit-learn's two functions on the same arrays."""
    scores, labels = draw("normal", pixels, pixels // 100)
    result, ours = timed(lambda: stream(scores, labels).compute(), repetitions)
    pair = labels.numpy(), scores.numpy()
    truth, sklearn = timed(lambda: (average_precision_score(*pair), roc_auc_score(*pair)), repetitions)
    print(f"{pixels} pixels: {sklearn['cpu_s'] / ours['cpu_s']:.1f} times less CPU time than scikit-learn", flush=True)
    return {
        "pixels": pixels,
        "repetitions": repetitions,
        "pixel_ranking": ours,
        "scikit_learn": sklearn,
        "ns_per_pixel": {key: ours[key] / pixels * 1e9 for key in ours},
        "times_faster": {key: sklearn[key] / ours[key] for key in ours},
        "error": [abs(result[name].value - exact) for name, exact in zip(AREAS, truth, strict=True)],
        "bound": [result[name].error for name in AREAS],
    }


def speed(_: argparse.Namespace) -> dict[str, Any]:
    """50 million pixels at the top level, fewer below `sizes`; and the exact ranking of one image."""
    torch.set_num_threads(1)
    scores, labels = draw("normal", IMAGE, IMAGE // 100)
    _, single = timed(lambda: SortedScores(scores, labels).ranking(), 20)
    sizes = {f"{pixels:.0e}": faster(pixels, repetitions) for pixels, repetitions in ((10**6, 5), (10**7, 1))}
    return {
        "protocol": "normal float32 scores, 1 % positives: update by image + compute, against average_precision_score "
        "+ roc_auc_score, one process, one thread, the least time of the repetitions",
        **faster(50_000_000, 1),
        "sizes": sizes,
        "ranking_one_image_ms": {key: seconds * 1e3 for key, seconds in single.items()},
    }


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory above what the imports hold, over images drawn one after the other."""
    torch.set_num_threads(1)
    imports, result, updating = resident_mib("VmRSS"), PixelRanking(), 0.0
    start = time.perf_counter()
    for seed in range(options.images):
        rng = np.random.default_rng(seed)
        labels = rng.random(IMAGE, dtype=np.float32) < 0.01
        scores = torch.from_numpy(rng.standard_normal(IMAGE, dtype=np.float32) + np.float32(1.5) * labels)
        _, spent = timed(partial(result.update, scores, torch.from_numpy(labels)))
        updating += spent["wall_s"]
    numbers, computing = timed(result.compute)
    return {
        "protocol": f"{options.images} images of 1280x720 normal float32 scores, 1 % positives 1.5 higher, pooled; "
        "VmHWM at the end minus VmRSS after the imports",
        "pixels": result.positives + result.negatives,
        "base_rate": result.base_rate,
        "imports_mib": imports,
        "peak_above_imports_mib": resident_mib("VmHWM") - imports,
        "wall_s": {
            "all": time.perf_counter() - start,
            "update": updating,
            "compute": computing["wall_s"],
        },
        "numbers": {name: {"value": value, "error": error} for name, (value, error) in numbers.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("accuracy", "speed", "memory"))
    parser.add_argument("--images", type=int, default=1500, help="images to rank (memory)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    measured = {"accuracy": accuracy, "speed": speed, "memory": memory}[options.command](options)
    text = json.dumps({"command": f"python -m tests.benchmark_ranking {options.command}", **measured}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

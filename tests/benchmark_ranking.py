"""Measures `PixelRanking`: how tight its bounds are, how fast and how small it is. Not collected by pytest.

    python -m tests.benchmark_ranking accuracy [--json OUT]
    python -m tests.benchmark_ranking speed [--pixels 50000000] [--json OUT]
    python -m tests.benchmark_ranking memory --maps DIR [--json OUT]

Every command is one process, so that no measurement inherits the memory of another. DIR holds StreetHazards'
test annotations (`<town>/<n>.png`, values 1..14, 14 = anomaly): real label maps with scores drawn by label, a
new draw for every map and pass. Times are wall and CPU seconds: on a shared machine compare the latter.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from src.metrics import PixelRanking, ranking
from tests.test_metrics import reference

IMAGE = 1280 * 720  # pixels of a StreetHazards image, the natural size of an update
ANOMALY = 14  # as stored in the label maps
LABELS = 15
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


def stream(scores: torch.Tensor, labels: torch.Tensor, **options: int) -> PixelRanking:
    result = PixelRanking(**options)
    for part in zip(scores.split(IMAGE), labels.split(IMAGE), strict=True):
        result.update(*part)
    return result


def accuracy(_: argparse.Namespace) -> dict[str, Any]:
    """The bound and the true error of every number, by distribution, size, base rate and capacity.

    A million pixels fit the default capacity and must be exact; with five million or fewer bins they do not.
    """
    cases = [(10**6, 200, 1 << 22), (10**6, 200, 1 << 19), (10**6, 10**4, 1 << 19), (5 * 10**6, 200, 1 << 22)]
    rows = []
    for kind in DISTRIBUTIONS:
        for pixels, positives, max_bins in cases:
            scores, labels = draw(kind, pixels, positives)
            result = stream(scores, labels, max_bins=max_bins).compute()
            truth = reference(scores.numpy(), labels.numpy())
            errors = {name: abs(bounded.value - truth[name]) for name, bounded in result.items()}
            row = {"scores": kind, "pixels": pixels, "positives": positives, "max_bins": max_bins}
            row["bound"] = {name: bounded.error for name, bounded in result.items()}
            row["error"] = errors
            row["certified"] = all(errors[name] <= row["bound"][name] + 1e-12 for name in errors)
            rows.append(row)
            worst = ", ".join(f"{name} {errors[name]:.1e} <= {row['bound'][name]:.1e}" for name in errors)
            print(f"{kind:10s} {positives:6d} in {pixels:9d}, {max_bins:8d} bins: {worst}", flush=True)
    tight = all(row["bound"][name] <= 1e-4 for row in rows for name in AREAS)
    protocol = "|value - scikit-learn| against the certified bound, float32 scores, updates of one image"
    certified = all(row["certified"] for row in rows)
    return {"protocol": protocol, "all_certified": certified, "all_within_1e-4": tight, "rows": rows}


def timed(action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """One run over all pixels, image by image, against scikit-learn's two functions on the same arrays."""
    scores, labels = draw("normal", options.pixels, options.pixels // 100)
    result, ours = timed(lambda: stream(scores, labels).compute())
    _, single = timed(lambda: [ranking(scores[:IMAGE], labels[:IMAGE]) for _ in range(20)])
    flat_scores, flat_labels = scores.numpy(), labels.numpy()
    truth, sklearn = timed(
        lambda: (average_precision_score(flat_labels, flat_scores), roc_auc_score(flat_labels, flat_scores))
    )
    return {
        "protocol": f"{options.pixels} normal float32 scores, 1 % positives: update by image + compute, "
        "against average_precision_score + roc_auc_score, one process, one run each",
        "pixel_ranking": ours,
        "scikit_learn": sklearn,
        "ns_per_pixel": {key: ours[key] / options.pixels * 1e9 for key in ours},
        "times_faster": {key: sklearn[key] / ours[key] for key in ours},
        "ranking_one_image_ms": {key: single[key] / 20 * 1e3 for key in single},
        "error": [abs(result[name].value - exact) for name, exact in zip(AREAS, truth, strict=True)],
        "bound": [result[name].error for name in AREAS],
    }


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def labelled_scores(maps: list[Path], passes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Seeded scores (H, W) float32 of a mean and spread by label, and the anomaly mask."""
    means = np.random.default_rng(0).normal(0, 1, LABELS).astype(np.float32)
    spreads = np.random.default_rng(1).uniform(0.5, 2, LABELS).astype(np.float32)
    means[ANOMALY] = 2.0
    for index in range(passes * len(maps)):
        label = np.asarray(Image.open(maps[index % len(maps)]))
        noise = np.random.default_rng(index).standard_normal(label.shape, dtype=np.float32)
        yield torch.from_numpy(means[label] + spreads[label] * noise), torch.from_numpy(label == ANOMALY)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory above what the imports hold, over `passes` passes of real label maps."""
    if options.maps is None:
        raise SystemExit("memory needs --maps DIR, the folder of StreetHazards' test annotations")
    imports, result = resident_mib("VmRSS"), PixelRanking()
    maps = sorted(options.maps.glob("*/*.png"))
    start, updating = time.perf_counter(), 0.0
    for scores, labels in labelled_scores(maps, options.passes):
        _, spent = timed(lambda scores=scores, labels=labels: result.update(scores, labels))
        updating += spent["wall_s"]
    numbers, computing = timed(result.compute)
    return {
        "protocol": f"{len(maps)} label maps x {options.passes} passes, pooled, scores drawn by label, "
        "every label but the anomaly a negative; VmHWM at the end minus VmRSS after the imports",
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
    parser.add_argument("--maps", type=Path, help="folder of the test annotations (memory)")
    parser.add_argument("--passes", type=int, default=6, help="passes over the maps (memory)")
    parser.add_argument("--pixels", type=int, default=50_000_000, help="pixels to rank (speed)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    measured = {"accuracy": accuracy, "speed": speed, "memory": memory}[options.command](options)
    text = json.dumps({"command": options.command, **measured}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""Times what a score costs beside the forward pass that it needs. Not collected by pytest.

    python -m tests.benchmark_score_speed [--repeat 5] [--json OUT]

One image: the ``full`` model (DeepLabV3-ResNet50, random weights) at 720 x 1280, and the committed CamVid model at
its own size, 540 x 960, with scores at 720 x 1280. Median seconds: ``forward`` (backbone, class layers, logits at the
image's size), ``sml`` (standardized, suppressed, smoothed), ``outlier`` (the head and its enlarging) and
``combined`` (that, energy and their sum) after it.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from src import road, settings, system
from src.road.model import class_logits, layer_outputs
from src.road.scores import TAIL_SHARES, ClassStatistics, combined, sml
from tests.benchmarking import run

SIZE = (720, 1280)
PROTOCOL = (
    "median of --repeat runs after one more; "
    "full: 720 x 1280 image and scores; real: 540 x 960 image, scores at 720 x 1280"
)
TAILS = dict.fromkeys(("outlier", "energy"), torch.linspace(-3, 3, len(TAIL_SHARES)).tolist())


def timed(work) -> tuple[float, object]:
    start = time.perf_counter()
    value = work()
    if settings.DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


@torch.inference_mode()
def measure(model, size: tuple[int, int], repeat: int) -> dict[str, float]:
    """Median seconds of each part, and the scores' shares of the forward pass."""
    model = model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    image = torch.randn(1, 3, *size, device=settings.DEVICE).contiguous(memory_format=torch.channels_last)
    head = model.outlier_head

    def enlarge(x):
        return F.interpolate(x.float(), SIZE, mode="bilinear")

    rows = []
    for _ in range(repeat + 1):
        deep, features = timed(lambda: layer_outputs(model.backbone, head.names, image))
        rest, logits = timed(lambda: enlarge(class_logits(model, features)))  # noqa: B023
        calibration = ClassStatistics(logits.shape[1])
        calibration.update(logits)
        class_statistics = calibration.compute()
        standardized, _ = timed(lambda: sml(logits, class_statistics))  # noqa: B023
        outlier, outlier_score = timed(lambda: enlarge(head(features)[:, None])[:, 0])  # noqa: B023
        adding, _ = timed(lambda: combined(logits, outlier_score, TAILS))  # noqa: B023
        rows.append((deep + rest, standardized, outlier, outlier + adding))
    forward, standardized, outlier, together = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    return {
        "forward": forward,
        "sml": standardized,
        "outlier": outlier,
        "combined": together,
        "sml_share": standardized / forward,
        "outlier_share": outlier / forward,
        "combined_share": together / forward,
    }


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    full, real_config = road.Config.full(), road.Config.real()
    real = system.load(road, system.weights_path(road, real_config), real_config)
    metrics = {
        "full": measure(road.build_model(full), SIZE, options.repeat),
        "real": measure(real.model, (540, 960), options.repeat),
    }
    return full.plain(), {"image": "random numbers"}, metrics


def show(metrics: dict) -> None:
    for name, row in metrics.items():
        print(name, {key: round(value, 4) for key, value in row.items()})


def main() -> None:
    """Record: assets/results/road/score_speed.json."""
    run("tests.benchmark_score_speed", __doc__, {"repeat": {"type": int, "default": 5}}, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""Times an evaluation against the bare networks on the same images, and predictions of many files against one by one.

    python -m tests.benchmark_evaluation [--images 20] [--repeat 1] [--json OUT]

One thread. ``road``: the network of ``camvid_cyclists.pth`` (the architecture of ``camvid.pth``: MobileNetV2 at 1/16,
short side 540) with its eight scores, on CamVid's test frames (480 x 360) and on RoadAnomaly's (1280 x 720).
``defects``: the committed network for magnetic tiles on its test images. ``forward``: the network and its heads on
images that are read already, enlarged to the label maps' size. ``evaluate``: all that an evaluation does, files to
metrics. ``predict``: files a second, of a process that has loaded the network. Data as ``download.sh`` and
``python -m src SYSTEM data`` leave them. Not collected by pytest.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import sklearn.metrics  # noqa: F401  else the first evaluation would import it
import torch

from src import defects, road, series, settings, system, training
from src.defects.data import DefectDataset
from src.defects.evaluation import Meter, samples, scored, summary
from src.defects.scores import pixels_of, signal_maps
from src.images import list_images
from src.road.evaluation import evaluate_split
from src.road.model import infer
from src.road.transforms import evaluation_loader
from tests.benchmarking import run

ROADS = {"480x360": "camvid_cyclists", "1280x720": "road_anomaly"}
PREDICTED = {  # a folder of the mini data for each system, and settings
    road: ("test/images/test", ()),
    defects: ("fabric/test/good", ["categories=fabric"]),
    series: ("test/point_anomaly", ()),
}
PROTOCOL = (
    "one process, one thread, CPU seconds; images evenly spread over the split; forward and evaluation in turn, "
    "--repeat times: medians, and the median of the ratios of each turn"
)


def seconds(work: Callable) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def against(forward: Callable, evaluate: Callable, images: int, repeat: int) -> dict[str, float]:
    """Medians over turns, in milliseconds an image, and how many times the networks an evaluation takes."""
    forward()
    turns = [(seconds(forward), seconds(evaluate)) for _ in range(repeat)]
    networks, whole = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "images": images,
        "forward_ms": 1e3 * networks / images,
        "evaluate_ms": 1e3 * whole / images,
        "images_per_second": images / whole,
        "ratio": statistics.median(evaluation / network for network, evaluation in turns),
    }


def spread(items: list, count: int) -> list:
    """At most so many of the items, evenly spread."""
    return items[:: -(-len(items) // count)]


def of_roads(name: str, count: int, repeat: int) -> dict[str, float]:
    """Roads of one data set."""
    trained = system.load(road, settings.WEIGHTS_DIR / "road/camvid_cyclists.pth", road.Config.real("camvid_cyclists"))
    dataset = road.data.open_compatible(trained.config, name, None, "test")
    dataset.pairs = spread(dataset.pairs, count)
    model = trained.model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    batches = [training.to_device(batch) for batch in evaluation_loader(dataset, trained.config.image_size, 1)]

    def forward() -> None:
        for batch in batches:
            infer(model, batch["image"], batch["mask"].shape[-2:])

    return against(forward, partial(evaluate_split, trained, dataset), len(dataset), repeat)


def of_tiles(count: int, repeat: int) -> dict[str, float]:
    """Magnetic tiles."""
    config = defects.Config.real()
    trained = system.load(defects, system.weights_path(defects, config), config)
    ((category, dataset),) = samples(trained, None, None, "test").items()
    dataset = DefectDataset(spread(dataset.items, count), dataset.root)
    model = trained.model.to(settings.DEVICE, memory_format=torch.channels_last).eval()
    pixels = [pixels_of(dataset[index]["image"][None], trained.config) for index in range(len(dataset))]

    def forward() -> None:
        for image in pixels:
            signal_maps(model, category, image, trained.config, trained.config.stride)

    def evaluate() -> None:
        summary(trained, category, Meter.of(scored(trained, category, dataset)))

    return against(forward, evaluate, len(dataset), repeat)


def of_predictions(package, folder: str, settings_of: list[str], count: int) -> dict[str, float]:
    """Files a second of the mini data, together and one by one."""
    config = package.Config.mini()
    trained = system.load(package, system.weights_path(package, config), config, settings_of)
    root = system.default_root(package, config.dataset)
    files = spread(list_images(root / folder, nested=True), count)
    with TemporaryDirectory() as out:
        system.predict(package, trained, files[:1], Path(out))
        together = seconds(lambda: system.predict(package, trained, files, Path(out)))
        alone = seconds(lambda: [system.predict(package, trained, [file], Path(out)) for file in files])
    return {"files": len(files), "together": len(files) / together, "one_by_one": len(files) / alone}


def measure(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    torch.set_num_threads(1)
    metrics = {
        "road": {size: of_roads(name, options.images, options.repeat) for size, name in ROADS.items()},
        "defects": {"tiles": of_tiles(options.images, options.repeat)},
        "predict": {
            system.name_of(package): of_predictions(package, *place, options.images)
            for package, place in PREDICTED.items()
        },
    }
    return road.Config.real("camvid_cyclists").plain(), {"dataset": [*ROADS.values(), "magnetic_tile", "mini"]}, metrics


def show(metrics: dict) -> None:
    for group in metrics.values():
        for name, row in group.items():
            print(name, {key: round(value, 3) for key, value in row.items()})


def main() -> None:
    """Record: assets/results/metrics/evaluation_speed.json."""
    options = {"images": {"type": int, "default": 20}, "repeat": {"type": int, "default": 1}}
    run("tests.benchmark_evaluation", __doc__, options, measure, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""Measures how well series can be classified from their numbers alone. Not collected by pytest.

    python -m tests.benchmark_numbers [--train 6000] [--test 500] [--json OUT]

``src.series.numbers`` trained on the first series of every class of the split train, tested on the first of the split
test.
"""

from time import perf_counter

import torch

from src import settings
from src.series.evaluation import by_length, measure
from src.series.numbers import FromNumbers, draw_numbers
from src.synthetic.time_series import CLASSES
from tests.benchmarking import run

PROTOCOL = "generated series, balanced; accuracy with 95 % interval over 1000 bootstrap resamples of series"


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    series, labels = draw_numbers("train", range(options.train))
    unseen, truth = draw_numbers("test", range(options.test))
    lengths, truth = [len(values) for values in unseen], torch.from_numpy(truth)
    started = perf_counter()
    model = FromNumbers().fit(series, labels)
    fitted = perf_counter()
    probabilities = torch.from_numpy(model.probabilities(unseen))
    metrics = measure(probabilities, truth, CLASSES)
    metrics["lengths"] = by_length(probabilities.argmax(1) == truth, lengths)
    metrics["seconds"] = {"fit": fitted - started, "predict": perf_counter() - fitted}
    data = {"dataset": "generated", "train": len(series), "test": len(unseen)}
    return {"seed": settings.SEED}, data, {"accuracy": metrics["accuracy"], "kinds": {"summary": metrics}}


def show(metrics: dict) -> None:
    row = metrics["kinds"]["summary"]
    print(f"accuracy {row['accuracy']:.4f}  macro_f1 {row['macro_f1']:.4f}  lengths {row['lengths']}")


def main() -> None:
    """Record: assets/results/series/numbers.json."""
    options = {
        "train": {"type": int, "default": 6000, "help": "series of a class to train on"},
        "test": {"type": int, "default": 500, "help": "series of a class to test on"},
    }
    run("tests.benchmark_numbers", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

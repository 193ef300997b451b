"""Measures how well series can be classified from their numbers alone. Not collected by pytest.

    python -m tests.benchmark_numbers [--train 6000] [--test 500] [--json OUT]

Both methods of ``src.series.numbers``, trained on the first series of every class
of the split train, tested on the first of the split test.
"""

from time import perf_counter

import torch

from src import settings
from src.series.evaluation import by_length, measure
from src.series.numbers import KINDS, FromNumbers, draw_numbers
from src.synthetic.time_series import CLASSES
from tests.benchmarking import run

PROTOCOL = "generated series, balanced; accuracy with 95 % interval over 1000 bootstrap resamples of series"


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    series, labels = draw_numbers("train", range(options.train))
    unseen, truth = draw_numbers("test", range(options.test))
    lengths, truth, kinds = [len(values) for values in unseen], torch.from_numpy(truth), {}
    for kind in KINDS:
        started = perf_counter()
        model = FromNumbers(kind).fit(series, labels)
        fitted = perf_counter()
        probabilities = torch.from_numpy(model.probabilities(unseen))
        seconds = {"fit": fitted - started, "predict": perf_counter() - fitted}
        kinds[kind] = measure(probabilities, truth, CLASSES)
        kinds[kind] |= {"lengths": by_length(probabilities.argmax(1) == truth, lengths), "seconds": seconds}
    data = {"dataset": "generated", "train": len(series), "test": len(unseen)}
    return {"seed": settings.SEED}, data, {"accuracy": max(row["accuracy"] for row in kinds.values()), "kinds": kinds}


def show(metrics: dict) -> None:
    for name, row in metrics["kinds"].items():
        print(f"{name}: accuracy {row['accuracy']:.4f}  macro_f1 {row['macro_f1']:.4f}  lengths {row['lengths']}")


def main() -> None:
    """Record: assets/results/series/numbers.json."""
    options = {
        "train": {"type": int, "default": 6000, "help": "series of a class to train on"},
        "test": {"type": int, "default": 500, "help": "series of a class to test on"},
    }
    run("tests.benchmark_numbers", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""Measures how well series can be told from their numbers alone. Not collected by pytest.

    python -m tests.benchmark_numbers [--train 6000] [--test 500] [--json OUT]

Both methods of ``src.series.numbers``, trained on the first series of every class
of the split train, tested on the first of the split test.
"""

from time import perf_counter

import torch

from src import settings
from src.series.evaluation import by_length, measure
from src.series.numbers import KINDS, FromNumbers, drawn
from src.synthetic.time_series import CLASSES
from tests.benchmarking import run

PROTOCOL = "generated series, balanced; accuracy with 95 % interval over 1000 bootstrap resamples of series"


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    seen, labels = drawn("train", range(options.train))
    unseen, truth = drawn("test", range(options.test))
    lengths, truth, kinds = [len(x) for x in unseen], torch.from_numpy(truth), {}
    for kind in KINDS:
        started = perf_counter()
        model = FromNumbers(kind).fit(seen, labels)
        fitted = perf_counter()
        found = torch.from_numpy(model.probabilities(unseen))
        seconds = {"fit": fitted - started, "predict": perf_counter() - fitted}
        own = {"lengths": by_length(found.argmax(1) == truth, lengths), "seconds": seconds}
        kinds[kind] = measure(found, truth, CLASSES) | own
    data = {"dataset": "generated", "train": len(seen), "test": len(unseen)}
    return {"seed": settings.SEED}, data, {"accuracy": max(row["accuracy"] for row in kinds.values()), "kinds": kinds}


def show(found: dict) -> None:
    for name, row in found["kinds"].items():
        print(f"{name}: accuracy {row['accuracy']:.4f}  macro_f1 {row['macro_f1']:.4f}  lengths {row['lengths']}")


def main() -> None:
    """Record: assets/results/series/numbers.json."""
    options = {"train": {"type": int, "default": 6000, "help": "series of a class to train on"},
               "test": {"type": int, "default": 500, "help": "series of a class to test on"}}  # fmt: skip
    run("tests.benchmark_numbers", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""Measures what the labels at a plot's axes give away beyond its line. Not collected by pytest.

    python -m tests.benchmark_axes [--train 1000] [--test 500] [--json OUT]

Boosted trees on the log-probabilities of the committed network of envelopes, which sees no axes, and the same with what
tick labels say: the number of samples, the lowest and the highest value. Generated series that it was not trained on.
"""

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from src import series, settings, system
from src.series import envelope, evaluation, generated
from src.synthetic.time_series import generate
from tests.benchmarking import run

PROTOCOL = "generated series, balanced; accuracy with 95 % interval over 1000 bootstrap resamples of series"
FIRST = 5_000_000  # no training run has come that far


def features(model, per_class: int, split: str, seed: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Log-probabilities (N,9), what the axes say (N,3), labels (N,)."""
    numbers = range(FIRST, FIRST + per_class)
    plots = generated.draw_series(envelope.of_series, numbers, seed=seed, split=split)
    logs = model.log_probabilities(plots.items).numpy()
    series_values = [generate(name.split("/")[0], int(name.split("/")[1]), split, seed).values for name in plots.names]
    axes = np.array([[np.log(len(values)), values.min(), values.max()] for values in series_values])
    return logs, axes, plots.labels


def measure(train: int, test: int, seed: int) -> dict:
    """``line`` and ``line_and_axes``, each as ``evaluation.measure`` has it."""
    model = system.load(series, series.PRETRAINED, series.Config.mini()).model
    parts = {split: features(model, count, split, seed) for split, count in (("train", train), ("test", test))}
    metrics = {}
    for name, columns in (("line", slice(0, 1)), ("line_and_axes", slice(0, 2))):
        inputs = {split: np.concatenate(part[:2][columns], 1) for split, part in parts.items()}
        trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, random_state=seed)
        trees.fit(inputs["train"], parts["train"][2].numpy())
        probabilities = torch.from_numpy(trees.predict_proba(inputs["test"]))
        metrics[name] = evaluation.measure(probabilities, parts["test"][2], series.CLASSES)
    return metrics


def measured(options) -> tuple[dict, dict, dict]:
    """Config, data and metrics of the record."""
    sizes = {"dataset": "generated", "train_per_class": options.train, "test_per_class": options.test}
    return {"seed": settings.SEED}, sizes, measure(options.train, options.test, settings.SEED)


def show(metrics: dict) -> None:
    for name, row in metrics.items():
        print(f"{name}: accuracy {row['accuracy']:.4f}  macro_f1 {row['macro_f1']:.4f}")


def main() -> None:
    """Record: assets/results/series/axes.json."""
    options = {
        "train": {"type": int, "default": 1000, "help": "series of a class to train the trees on"},
        "test": {"type": int, "default": 500, "help": "series of a class to test on"},
    }
    run("tests.benchmark_axes", __doc__, options, measured, show, PROTOCOL)


if __name__ == "__main__":
    main()

"""Series from their numbers: what the features measure, what the classifiers learn, and which series are drawn."""

import numpy as np
import pytest

from src import settings
from src.series import numbers
from src.series.numbers import FromNumbers, summary_features
from src.synthetic.time_series import CLASSES, generate

EASY = ("deterministic_trend", "stochastic_trend", "volatility")  # separable by forty examples each


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n)


def drawn(plenty, classes, start: int, stop: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Values and labels of some series of each class."""
    pairs = [(s.values, CLASSES.index(label)) for label in classes for s in plenty[label][start:stop]]
    return [values for values, _ in pairs], np.array([label for _, label in pairs])


@pytest.mark.parametrize("n", [50, 97, 1000, 10_000])
def test_features_have_one_size_for_all_lengths(n):
    vector = summary_features(noise(n))
    assert vector.dtype == np.float32 and vector.shape == (213,)
    assert np.isfinite(vector).all() and np.array_equal(vector, summary_features(noise(n)))
    assert not np.array_equal(vector, summary_features(noise(n, seed=1)))


def test_whitening_finds_the_autoregression():
    e, x = noise(20_000), np.zeros(20_000)
    for t in range(2, len(x)):
        x[t] = 0.5 * x[t - 1] - 0.3 * x[t - 2] + e[t]
    residual, phi = numbers._whitened(x)
    np.testing.assert_allclose(phi, [0.5, -0.3] + [0] * 8, atol=0.03)
    assert np.corrcoef(residual[20:], e[20:])[0, 1] > 0.999


@pytest.mark.parametrize("n", [57, 400])
def test_every_family_fits_its_own_curve_alone(n):
    u = np.linspace(-1, 1, n)
    curves = {
        "line": u,
        "bend": abs(u - 0.2),
        "step": np.where(u > 0.3, 1.0, 0.0),
        "bump": np.where(abs(u - 0.3) < 0.07, 1.0, 0.0),
    }
    names = list(numbers._families())
    r2 = {name: dict(zip(names, numbers._fits(curve)[: len(names)], strict=True)) for name, curve in curves.items()}
    assert all(0.8 < r2[name][name] <= 1 + 1e-9 for name in curves)
    assert r2["bend"]["line"] < 0.5 and r2["step"]["bump"] < 0.5 and r2["bump"]["step"] < 0.5


def test_the_classifier_learns(plenty):
    (series, labels), (unseen, truth) = drawn(plenty, EASY, 0, 60), drawn(plenty, EASY, 60, 120)
    probabilities = FromNumbers().fit(series, labels).probabilities(unseen)
    assert probabilities.shape == (len(unseen), 9)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert set(np.flatnonzero(probabilities.any(0))) == set(labels)
    assert (probabilities.argmax(1) == truth).mean() > 0.85


def test_short_series_are_refused():
    with pytest.raises(settings.InputError, match="series 1 .* 50 samples"):
        FromNumbers().features([noise(50), noise(49)])


def test_two_processes_keep_the_order(monkeypatch):
    monkeypatch.setattr(numbers, "FEW", 0)
    assert numbers._map(abs, range(-100, 0), "magnitudes") == list(range(100, 0, -1))


def test_series_are_drawn_by_number_with_their_labels():
    series, labels = numbers.draw_numbers("test", range(3, 5), seed=5)
    assert labels.dtype == np.int64 and labels.tolist() == [k for k in range(9) for _ in range(2)]
    for one, label, number in zip(series, labels, [3, 4] * 9, strict=True):
        assert one.dtype == np.float32
        assert np.array_equal(one, np.float32(generate(CLASSES[label], number, "test", 5).values))

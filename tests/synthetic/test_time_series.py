"""The generated series: repeatable, of the families and sizes stated, with their events where they say."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from scipy.signal import lfilter

from src import settings
from src.synthetic import time_series
from src.synthetic.time_series import CLASSES

FIVE_SIGMA = 5


def same(a: time_series.Series, b: time_series.Series) -> bool:
    return np.array_equal(a.values, b.values)


def long_single(series: list[time_series.Series]) -> list[time_series.Series]:
    """Long series with one event, where statistics are sharp."""
    sharp = [s for s in series if len(s.values) >= 1000 and len(s.events) == 1]
    assert len(sharp) >= 10
    return sharp


def cut(s: time_series.Series) -> tuple[np.ndarray, np.ndarray]:
    """The values before and after the first event began."""
    return s.values[: s.events[0][0]], s.values[s.events[0][0] :]


@pytest.mark.parametrize("label", CLASSES)
def test_four_arguments_decide(label):
    one = time_series.generate(label, 5, "val", seed=1)
    assert same(one, time_series.generate(label, 5, "val", seed=1))
    others = [(label, 6, "val", 1), (label, 5, "test", 1), (label, 5, "val", 2)]
    assert not any(same(one, time_series.generate(*arguments)) for arguments in others)


def test_classes_share_no_random_numbers():
    bases = [time_series.generate(label, 0, seed=9).parameters.get("base_noise") for label in CLASSES]
    known = [sigma for sigma in bases if sigma is not None]
    assert len(set(known)) == len(known) >= 5


@pytest.mark.parametrize("call", [("mean", 0, "train"), ("mean_shift", 0, "all"), ("mean_shift", -1, "train")])
def test_what_cannot_be_drawn_is_refused(call):
    with pytest.raises(settings.InputError, match=f"no series {call[2]}/{call[0]}/{call[1]}"):
        time_series.generate(*call)


def test_classes_are_nine_in_order():
    assert list(CLASSES) == sorted(CLASSES) and len(CLASSES) == 9


@pytest.mark.parametrize("label", CLASSES)
def test_lengths_and_form(plenty, label):
    lengths = np.array([len(s.values) for s in plenty[label]])
    longest = 10_000 if label in ("stochastic_trend", "volatility") else 2_000
    bands = [(lengths >= low) & (lengths <= high) for low, high in ((50, 99), (300, 499), (1000, longest))]
    assert sum(band.sum() for band in bands) == len(lengths)
    for band, share in zip(bands, (0.33, 0.30, 0.37), strict=True):
        assert abs(band.mean() - share) < FIVE_SIGMA * np.sqrt(share * (1 - share) / len(lengths))
    assert (lengths.max() > 2_000) == (longest > 2_000)
    for s in plenty[label]:
        assert s.values.dtype == np.float64 and s.values.ndim == 1 and np.isfinite(s.values).all()
        assert np.isfinite(s.snr) and s.label == label


@pytest.mark.parametrize("label", CLASSES)
def test_only_waves_and_parabolas_keep_their_scale(plenty, label):
    for s in plenty[label]:
        keeps = label == "contextual_anomaly" or "quadratic" in s.family
        assert (abs(s.values.mean()) < 1e-9 and abs(s.values.std() - 1) < 1e-9) != keeps


@pytest.mark.parametrize("label", CLASSES)
def test_events_lie_inside(plenty, label):
    for s in plenty[label]:
        assert all(0 <= start < stop <= len(s.values) for start, stop in s.events)
        assert sorted(s.events) == list(s.events)
        if label in ("deterministic_trend", "stochastic_trend", "volatility"):
            assert s.events == ()
        elif label == "point_anomaly":
            assert 1 <= len(s.events) <= 40 and all(stop == start + 1 for start, stop in s.events)
        else:
            assert 1 <= len(s.events) <= 4


def test_families_have_their_shares(plenty):
    count = len(plenty["point_anomaly"])
    trends = {"linear_up": 0.19, "linear_down": 0.125, "quadratic": 0.2, "cubic": 0.14}
    stated = {
        "point_anomaly": {"single_beginning": 0.3, "single_middle": 0.2, "single_end": 0.22, "multiple": 0.28},
        "deterministic_trend": trends | {"exponential": 0.21, "damped": 0.135},
        "volatility": {"arch": 0.23, "garch": 0.24, "egarch": 0.24, "aparch": 0.29},
        "mean_shift": {"ar_": 0.25, "ma_": 0.25, "arma_": 0.25, "white_noise_": 0.25},
    }
    for label, shares in stated.items():
        drawn = Counter()
        for s in plenty[label]:
            drawn[max((name for name in shares if name in f"_{s.family}".replace("_arma", "arma")), key=len)] += 1
        for name, share in shares.items():
            assert abs(drawn[name] / count - share) < FIVE_SIGMA * np.sqrt(share * (1 - share) / count), name


def test_a_single_point_is_the_extreme(plenty):
    singles = [s for s in plenty["point_anomaly"] if "single" in s.family]
    assert len(singles) > 50
    for s in singles:
        place = time_series.PLACES[s.family.rsplit("_", 1)[1]]
        others = np.delete(s.values, s.events[0][0])
        largest = abs(others - others.mean()).max()
        assert abs(s.values[s.events[0][0]] - others.mean()) > 1.05 * largest
        assert place[0] * len(s.values) - 1 <= s.events[0][0] <= place[1] * len(s.values)


def test_collective_anomalies_move_the_level(plenty):
    for s in long_single(plenty["collective_anomaly"]):
        (start, stop), (size,) = s.events[0], s.parameters["sizes"]
        inside = np.zeros(len(s.values), bool)
        inside[start:stop] = True
        assert 0.05 * len(inside) - 1 <= stop - start <= 0.09 * len(inside)
        moved = s.values[inside].mean() - s.values[~inside].mean()
        assert moved * np.sign(size) > 0.3 * abs(size)


def test_waves_are_upside_down_in_the_events(plenty):
    for s in plenty["contextual_anomaly"]:
        wave = np.sin(2 * np.pi * np.arange(len(s.values)) / s.parameters["period"])
        inside = np.zeros(len(s.values), bool)
        for start, stop in s.events:
            inside[start:stop] = True
        if len(inside) < 300:
            continue
        assert (s.values * wave)[inside].mean() < 0 < (s.values * wave)[~inside].mean()
        assert 6 <= len(inside) / s.parameters["period"] <= 20


def test_means_shift_at_the_break(plenty):
    sharp = [s for s in long_single(plenty["mean_shift"]) if "white_noise" in s.family or s.snr > 20]
    assert len(sharp) > 5
    for s in sharp:
        (before, after), (size,) = cut(s), s.parameters["sizes"]
        assert (after.mean() - before.mean()) * np.sign(size) > 0


def test_variances_shift_at_the_break(plenty):
    noise = [s for s in long_single(plenty["variance_shift"]) if "white_noise" in s.family]
    assert noise
    for s in noise:
        (before, after), (factor,) = cut(s), s.parameters["factors"]
        assert 1.5 <= max(factor, 1 / factor) <= 3
        assert after.std() / before.std() == pytest.approx(factor, rel=0.25)


def test_slopes_shift_at_the_break(plenty):
    for s in (s for s in long_single(plenty["trend_shift"]) if s.snr > 35):
        before, after = (np.polyfit(np.arange(len(part)), part, 1)[0] for part in cut(s))
        first, second = s.parameters["slopes"]
        assert after / before == pytest.approx(second / first, rel=0.3)


def test_trends_are_what_they_are_called(plenty):
    seen = set()
    for s in plenty["deterministic_trend"]:
        kind, n = s.family.removesuffix("_trend"), len(s.values)
        start, end = s.values[: n // 10].mean(), s.values[-(n // 10) :].mean()
        u = np.linspace(-1, 1, n)
        seen.add(kind.split("_", 1)[-1] if kind.startswith(("ar", "ma")) else kind)
        if "linear" in kind:
            assert (end - start) * (1 if kind.endswith("up") else -1) > 0
        elif kind == "damped":
            assert start > 1.3 > -0.3 > end
        elif kind == "exponential":
            assert (end > start) == (s.parameters["rate"] > 0)
        elif n >= 300:
            power = 2 if "quadratic" in kind else 3
            fitted, stated = np.polyfit(u, s.values, power)[0], s.parameters["coefficients"][power]
            assert fitted * stated > 0
            assert power == 3 or fitted == pytest.approx(stated, rel=0.5, abs=1.0)
    assert {"damped", "exponential"} <= seen


def test_stochastic_trends_wander_and_their_steps_do_not(plenty):
    long = [s.values for s in plenty["stochastic_trend"] if len(s.values) >= 1000]
    assert np.quantile([np.corrcoef(x[1:], x[:-1])[0, 1] for x in long], 0.1) > 0.95
    walks = [s for s in plenty["stochastic_trend"] if s.family == "random_walk" and len(s.values) >= 300]
    for s in walks:
        steps = np.diff(s.values)
        assert abs(np.corrcoef(steps[1:], steps[:-1])[0, 1]) < FIVE_SIGMA / np.sqrt(len(steps))


def test_volatility_clusters_without_correlation(plenty):
    long = [s.values for s in plenty["volatility"] if s.family != "aparch" and len(s.values) >= 1000]
    squares, kurtosis = [], []
    for x in long:
        squares.append(np.corrcoef(x[1:] ** 2, x[:-1] ** 2)[0, 1])
        kurtosis.append((x**4).mean())
    assert np.median(squares) > 0.15 and np.median(kurtosis) > 4
    assert abs(np.mean([np.corrcoef(x[1:], x[:-1])[0, 1] for x in long])) < 0.05


def test_lags_are_stable():
    rng = np.random.default_rng(0)
    for order in (0, 1, 3, 5):
        lags = [time_series._lags(rng, order, 0, 0.9) for _ in range(50)]
        assert {len(polynomial) for polynomial in lags} == {order + 1}
        impulse = np.append(1.0, np.zeros(20_000))
        assert max(abs(lfilter([1], polynomial, impulse)[-1]) for polynomial in lags) < 1e-3


def test_residual_is_that_of_the_filter():
    x = np.random.default_rng(0).standard_normal(60).cumsum()
    bend = np.diff(np.eye(60), 2, axis=0)
    trend = np.linalg.solve(np.eye(60) + time_series.SMOOTHING * bend.T @ bend, x)
    np.testing.assert_allclose(time_series._hp_residual(x), x - trend, atol=1e-8)


def test_several_positions_keep_their_distance():
    rng = np.random.default_rng(0)
    drawn = [time_series._positions(rng, 1000) for _ in range(400)]
    several = [at for place, at in drawn if place == "multiple"]
    assert {len(at) for at in several} == {2, 3, 4} and 50 < len(several) < 150
    for at in several:
        assert at.min() >= 99 and at.max() <= 900 and np.diff(at).min() >= 99


def test_signal_to_noise_spans_subtle_to_obvious(plenty):
    snr = np.array([s.snr for series in plenty.values() for s in series])
    assert (snr < 10).mean() > 0.1 and (snr > 30).mean() > 0.1
    short = [s.snr for s in plenty["mean_shift"] if len(s.values) < 100]
    long = [s.snr for s in plenty["mean_shift"] if len(s.values) >= 1000]
    assert np.median(long) > np.median(short) + 5


def test_signal_to_noise_by_hand(plenty):
    s = long_single(plenty["mean_shift"])[0]
    share, (size,) = s.events[0][0] / len(s.values), s.parameters["sizes"]
    energy = size**2 * share * (1 - share) * len(s.values)
    spread = 1 + s.parameters["base_noise"] ** 2 if "white_noise" in s.family else 1
    assert s.snr == pytest.approx(10 * np.log10(energy / spread), abs=0.5)


def test_files_hold_the_series(tmp_path, plenty):
    described = {f"train/{label}/000": series[0] for label, series in plenty.items()}
    one = plenty["contextual_anomaly"][0]
    time_series.write_csv(one, tmp_path / "a" / "000.csv")
    time_series.write_metadata(described, tmp_path / "metadata.json", seed=3)
    with (tmp_path / "a" / "000.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["time", "data"]
    assert [int(row[0]) for row in rows] == list(range(len(one.values)))
    np.testing.assert_allclose([float(row[1]) for row in rows], one.values, rtol=1e-5)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert (metadata["version"], metadata["seed"]) == (time_series.VERSION, 3)
    assert set(metadata["series"]) == set(described)
    row = metadata["series"]["train/contextual_anomaly/000"]
    assert set(row) == {"length", "label", "family", "events", "parameters", "snr"}
    assert row["length"] == len(one.values) and row["events"] == [list(event) for event in one.events]
    assert row["parameters"]["period"] == one.parameters["period"]

"""Time series of nine kinds of behaviour, drawn from documented stochastic families.

Every series is a sum of noise, the signal that makes it of its class, and the rest (a wave or straight line that the
signal disturbs): so each knows where its events are and how far they stand out. The bases are AR, MA and ARMA
processes and white noise (Box and Jenkins); volatility follows Engle (1982) and his successors.
"""

import json
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src import settings

VERSION = 2  # raise it whenever a value or a plot changes, so that old data sets are recognised
SPLITS = ("train", "val", "test")
LENGTHS = ((0.33, 50, 99), (0.30, 300, 499), (0.37, 1000, 2000))  # share, samples from and to, both included
LONGEST = {"stochastic_trend": 10_000, "volatility": 10_000}  # where it is not 2000
BASES = ("ar", "ma", "arma", "white_noise")  # in equal shares
PLACES = {"beginning": (0.1, 0.3), "middle": (0.4, 0.6), "end": (0.7, 0.9)}  # of an event, as shares of the length
PERIODS = (5, 7, 12, 24, 30, 52, 90, 180)  # samples, of the wave under a contextual anomaly
SMOOTHING = 11_000  # lambda of the Hodrick-Prescott filter
TRENDS = {
    "linear_up": 0.19,
    "linear_down": 0.125,
    "quadratic": 0.20,
    "cubic": 0.14,
    "exponential": 0.21,
    "damped": 0.135,
}
WALKS = {"random_walk": 0.20, "random_walk_drift": 0.20, "ari": 0.18, "ima": 0.20, "arima": 0.22}
CONDITIONAL = {"arch": 0.23, "garch": 0.24, "egarch": 0.24, "aparch": 0.29}
RECURSIONS = {  # bounds of omega, alpha and beta
    "arch": ((0.1, 0.3), (0.5, 0.9), (0, 0)),
    "garch": ((0.3, 0.6), (0.4, 0.6), (0.2, 0.5)),
    "egarch": ((0.1, 0.3), (0.5, 0.9), (0.6, 0.9)),
    "aparch": ((0.1, 0.3), (0.1, 0.3), (0.5, 0.8)),
}
BURN_IN = 500  # samples until a volatility has forgotten where it began


class Series(NamedTuple):
    """One series and how it came about.

    ``values`` float64 (n,); ``events`` spans (start, stop) of samples, stop excluded: the anomalies, or for a shift
    the first sample after each break; ``parameters`` what was drawn, in units of the series before normalisation;
    ``snr`` in dB: the energy of the signal about its mean, over the variance of the noise (what a matched filter
    sees): near 10 lost in the noise, above 30 plain.
    """

    values: np.ndarray
    label: str
    family: str
    events: tuple[tuple[int, int], ...]
    parameters: dict[str, Any]
    snr: float


class _Draft(NamedTuple):
    """A series in parts, each (n,), before normalisation: noise + signal + rest."""

    family: str
    noise: np.ndarray
    signal: np.ndarray
    parameters: dict[str, Any]
    events: Iterable = ()  # spans, (k,2)
    rest: np.ndarray | float = 0.0
    normalized: bool = True


def _standardize(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


def _choice(rng, shares: dict[str, float]) -> str:
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]


def _signed(rng, low: float, high: float, count: int | None = None):
    return rng.choice((-1.0, 1.0), count) * rng.uniform(low, high, count)


def _length(rng, label: str) -> int:
    band = rng.choice(len(LENGTHS), p=[share for share, _, _ in LENGTHS])
    _, shortest, longest = LENGTHS[band]
    if band == len(LENGTHS) - 1:
        longest = LONGEST.get(label, longest)
    return int(rng.integers(shortest, longest + 1))


def _lags(rng, order: int, low: float, high: float) -> np.ndarray:
    """1, c1 ... cp with |c| in [low, high], drawn until all roots of 1 + c1 L + ... lie outside the unit circle."""
    while True:
        polynomial = np.append(1.0, _signed(rng, low, high, order))
        if abs(np.roots(polynomial)).max(initial=0) < 1:
            return polynomial


def _filtered(numerator, denominator, x: np.ndarray) -> np.ndarray:
    from scipy.signal import lfilter  # slow to import, for all who read CLASSES and draw no series

    return lfilter(numerator, denominator, x)


def _base(rng, n: int) -> tuple[str, np.ndarray, dict]:
    """A stationary series (n,) under Gaussian measurement noise: its kind, values and parameters."""
    kind, sigma = BASES[rng.integers(len(BASES))], rng.uniform(0.1, 1.5)
    innovations, measured = rng.standard_normal(n), sigma * rng.standard_normal(n)
    if kind == "white_noise":
        return kind, innovations + measured, {"base_noise": sigma}
    ar, ma = (_lags(rng, rng.integers(1, 6) if part in kind else 0, 0, 0.9) for part in ("ar", "ma"))
    return (
        kind,
        _standardize(_filtered(ma, ar, innovations) + measured),
        {"ar": ar[1:], "ma": ma[1:], "base_noise": sigma},
    )


def _positions(rng, n: int, shares=(1, 1, 1, 1), high=0.9, gap=0.1) -> tuple[str, np.ndarray]:
    """A place and the sorted sample numbers of its events: one inside the place, or for "multiple" two to four.

    Several lie between 0.1 and ``high`` of the length, at least ``gap`` of it apart.
    """
    place = _choice(rng, dict(zip((*PLACES, "multiple"), shares, strict=True)))
    if place in PLACES:
        return place, np.array([int(n * rng.uniform(*PLACES[place]))])
    count = rng.integers(2, 5)
    slack = high - 0.1 - gap * (count - 1)  # shared out, so that no draw is refused
    return place, (n * (0.1 + gap * np.arange(count) + np.sort(rng.uniform(0, slack, count)))).astype(int)


def _staircase(n: int, breaks: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Steps (n,) of these sizes at these breaks, from 0."""
    steps = np.zeros(n)
    steps[breaks] = sizes
    return steps.cumsum()


def _hp_residual(x: np.ndarray) -> np.ndarray:
    """What is left of x (n,) without its trend by the filter of Hodrick and Prescott (1997)."""
    from scipy.linalg import solveh_banded

    bands = np.full((3, len(x)), SMOOTHING) * np.array([[1.0], [-4.0], [6.0]])
    bands[1, [1, -1]] = -2.0 * SMOOTHING
    bands[2, [0, 1, -2, -1]] = SMOOTHING * np.array([1.0, 5.0, 5.0, 1.0])
    bands[2] += 1
    return x - solveh_banded(bands, x)


def _point_anomaly(rng, n: int) -> _Draft:
    """Single: mean ± 1.1 to 1.3 times the largest swing. Multiple: up to 2 % of the samples, many of them hidden."""
    kind, x, parameters = _base(rng, n)
    place, at = _positions(rng, n, (0.30, 0.20, 0.22, 0.28))
    largest = abs(x - x.mean()).max()
    if place == "multiple":
        at = np.sort(rng.choice(n, rng.integers(2, max(2, min(40, n // 50)) + 1), replace=False))
        spread = np.array([x[max(0, i - n // 2) : i + n // 2].std() for i in at])
        sizes = np.maximum(spread * rng.uniform(2, 3.5, len(at)), largest * rng.uniform(0.5, 1.2, len(at)))
        sizes *= rng.choice((-1, 1), len(at))
    else:
        sizes, place = largest * _signed(rng, 1.1, 1.3, 1), f"single_{place}"
    signal = np.zeros(n)
    signal[at] = x.mean() + sizes - x[at]
    return _Draft(f"{kind}_point_anomaly_{place}", x, signal, parameters | {"sizes": sizes}, np.c_[at, at + 1])


def _collective_anomaly(rng, n: int) -> _Draft:
    """The level of 5 to 9 % of the series is moved by ±0.8 to 1.5 standard deviations; one to four times."""
    kind, x, parameters = _base(rng, n)
    _, starts = _positions(rng, n, high=0.85)
    lengths = (n * rng.uniform(0.05, 0.09, len(starts))).astype(int)
    sizes = _signed(rng, 0.8, 1.5, len(starts))
    events = np.c_[starts, np.minimum(starts + lengths, n)]
    signal = np.zeros(n)
    for (start, stop), size in zip(events, sizes, strict=True):
        signal[start:stop] += size * x.std()
    return _Draft(f"{kind}_collective_anomaly", x, signal, parameters | {"sizes": sizes}, events)


def _contextual_anomaly(rng, n: int) -> _Draft:
    """A wave of 6 to 20 periods, upside down for half a period around some of its peaks and valleys."""
    kind, x, parameters = _base(rng, n)
    period = rng.choice([p for p in PERIODS if max(5, n / 20) <= p <= n / 6])
    amplitude = x.std() * rng.uniform(1.5, 3)
    wave = amplitude * np.sin(2 * np.pi * np.arange(n) / period)
    place, at = _positions(rng, n, high=0.85, gap=0.05)
    turns = np.unique(np.rint(2 * at / period - 0.5))  # the nearest peaks and valleys, as numbers from 0
    width = min(max(period // 2, 10), n // 5)
    starts = np.rint((turns + 0.5) * period / 2).astype(int) - width // 2
    events = np.c_[starts, starts + width].clip(0, n)
    signal = np.zeros(n)
    for start, stop in events:
        signal[start:stop] = -2 * wave[start:stop]
    parameters |= {"period": period, "amplitude": amplitude}
    return _Draft(f"{kind}_contextual_anomaly_{place}", x, signal, parameters, events, wave, False)


def _mean_shift(rng, n: int) -> _Draft:
    """One to four steps of ±0.3 to 1.5; a step in the trend is a step in the series."""
    kind, x, parameters = _base(rng, n)
    _, breaks = _positions(rng, n)
    sizes = _signed(rng, 0.3, 1.5, len(breaks))
    jitter = rng.uniform(0.01, 0.05) * rng.standard_normal(n)
    steps = _staircase(n, breaks, sizes)
    return _Draft(f"{kind}_mean_shift", x + jitter, steps, parameters | {"sizes": sizes}, np.c_[breaks, breaks + 1])


def _variance_shift(rng, n: int) -> _Draft:
    """What a smooth trend leaves is multiplied or divided by 1.5 to 3 at one to four breaks."""
    kind, x, parameters = _base(rng, n)
    _, breaks = _positions(rng, n)
    factors = rng.uniform(1.5, 3, len(breaks)) ** rng.choice((-1, 1), len(breaks))
    gain = np.exp(_staircase(n, breaks, np.log(factors)))
    signal = (gain - 1) * _hp_residual(x)
    return _Draft(f"{kind}_variance_shift", x, signal, parameters | {"factors": factors}, np.c_[breaks, breaks + 1])


def _trend_shift(rng, n: int) -> _Draft:
    """A line whose slope turns round, grows 1.5- to 4.5-fold, or both, at one to four breaks; rest: the best line."""
    kind, x, parameters = _base(rng, n)
    _, breaks = _positions(rng, n)
    growth = rng.uniform(1.5, 4.5, len(breaks))
    turn = rng.integers(3, size=len(breaks))  # 0 direction, 1 magnitude, 2 both
    slopes = np.cumprod(np.append(_signed(rng, 0.1, 0.9), np.choose(turn, (-np.ones_like(growth), growth, -growth))))
    line = slopes[np.searchsorted(breaks, np.arange(n), "right")].cumsum()
    noise = _hp_residual(x) + rng.uniform(5, 15) * rng.standard_normal(n)
    straight = np.polynomial.Polynomial.fit(np.arange(n), line, 1)(np.arange(n))
    parameters = parameters | {"slopes": slopes}
    return _Draft(f"{kind}_trend_shift", noise, line - straight, parameters, np.c_[breaks, breaks + 1], straight)


def _deterministic_trend(rng, n: int) -> _Draft:
    """A polynomial over a base, or an exponential over white noise alone; "damped" is a falling exponential."""
    trend, u = _choice(rng, TRENDS), np.linspace(-1, 1, n)
    if trend in ("exponential", "damped"):
        rising = trend == "exponential" and rng.random() < 0.5
        scale, rate = rng.uniform(1, 2), rng.uniform(1.5, 3)
        sd = 3 * rng.uniform(*((0.1, 0.5) if rising else (0.01, 0.05)))
        signal = scale * np.exp(rate * (u + 1)) if rising else 5 * scale * np.exp(-rate * (u + 1))
        parameters = {"scale": scale, "rate": rate if rising else -rate, "noise": sd}
        return _Draft(f"{trend}_trend", sd * rng.standard_normal(n), signal, parameters)
    kind, x, parameters = _base(rng, n)
    if trend == "quadratic":
        bend, sd = _signed(rng, 2, 5), rng.uniform(0.001, 0.01)
        coefficients = [0, bend * rng.choice((-1, 0, 1)), bend]  # the vertex at 0.5, 0 or -0.5
    elif trend == "cubic":
        coefficients, sd = [0, -10, 10 * rng.choice((-1.5, 0, 1.5)), 10], rng.uniform(0.01, 0.05)
    else:
        rise = rng.uniform(5, 50) * (1 if trend == "linear_up" else -1)
        sd = rng.uniform(0.1, 1.5)
        coefficients = [1 + rise / 2, rise / 2]
    signal, noise = np.polynomial.Polynomial(coefficients)(u), x + sd * rng.standard_normal(n)
    parameters |= {"coefficients": coefficients, "noise": sd}
    return _Draft(f"{kind}_{trend}_trend", noise, signal, parameters, normalized=trend != "quadratic")


def _stochastic_trend(rng, n: int) -> _Draft:
    """A random walk, or an ARMA process summed up once or twice under noise; the summands count as noise as well."""
    kind, drift, sd, times = _choice(rng, WALKS), 0.0, 0.0, 1
    ar = ma = np.ones(1)
    if kind in ("ari", "ima", "arima"):
        bounds = (0.2, 0.8) if kind == "arima" else (0.3, 0.6)
        times, sd = rng.integers(1, 3), rng.uniform(0.1, 1.5)
        ar, ma = (_lags(rng, rng.integers(1, 4) if part in kind else 0, *bounds) for part in ("ar", "ma"))
    elif kind == "random_walk_drift":
        drift = rng.uniform(0.01, 0.1)
    summands = _filtered(ma, ar, rng.standard_normal(n))
    walk = np.cumsum(summands) if times == 1 else np.cumsum(np.cumsum(summands))
    parameters = {"ar": ar[1:], "ma": ma[1:], "integrated": times, "drift": drift, "noise": sd}
    signal = walk - summands + drift * np.arange(n)
    return _Draft(kind, summands + sd * rng.standard_normal(n), signal, parameters)


def _volatility(rng, n: int) -> _Draft:
    """Gaussian noise whose spread sigma depends on the past; noise: the same at the spread's root mean square.

    ARCH (Engle, 1982) and GARCH (Bollerslev, 1986) are APARCH (Ding, Granger and Engle, 1993) with delta = 2 and
    gamma = 0; EGARCH: Nelson (1991), with the symmetric term alone.
    """
    kind, e = _choice(rng, CONDITIONAL), rng.standard_normal(n + BURN_IN)
    while True:
        omega, alpha, beta = (rng.uniform(*pair) for pair in RECURSIONS[kind])
        if alpha + beta < 1 or kind == "egarch":
            break
    gamma, delta = (rng.uniform(-0.3, 0.3), rng.uniform(1, 2)) if kind == "aparch" else (0.0, 2.0)
    if kind == "egarch":
        sigma = np.exp(_filtered([0, 1], [1, -beta], omega + alpha * (abs(e) - np.sqrt(2 / np.pi))) / 2)
    else:
        growth = alpha * (abs(e) - gamma * e) ** delta + beta
        powers = accumulate(growth[:-1].tolist(), lambda power, factor: omega + factor * power, initial=omega)
        sigma = np.fromiter(powers, float, len(e)) ** (1 / delta)
    sigma, e = sigma[BURN_IN:], e[BURN_IN:]
    even = np.sqrt((sigma**2).mean())
    parameters = {"omega": omega, "alpha": alpha, "beta": beta, "gamma": gamma, "delta": delta}
    return _Draft(kind, even * e, (sigma - even) * e, parameters)


DRAW = {
    "collective_anomaly": _collective_anomaly,
    "contextual_anomaly": _contextual_anomaly,
    "deterministic_trend": _deterministic_trend,
    "mean_shift": _mean_shift,
    "point_anomaly": _point_anomaly,
    "stochastic_trend": _stochastic_trend,
    "trend_shift": _trend_shift,
    "variance_shift": _variance_shift,
    "volatility": _volatility,
}
CLASSES = tuple(DRAW)


def generate(label: str, number: int, split: str = "train", seed: int = settings.SEED) -> Series:
    """Draw series `number` of a class: the same for the same four arguments.

    Raises InputError for an unknown class or split, or a negative number.
    """
    if label not in DRAW or split not in SPLITS or number < 0:
        allowed = f"splits are {', '.join(SPLITS)}, classes are {', '.join(CLASSES)}, numbers count from 0"
        raise settings.InputError(f"no series {split}/{label}/{number}: {allowed}")
    rng = np.random.default_rng([seed, CLASSES.index(label), SPLITS.index(split), number])
    draft = DRAW[label](rng, _length(rng, label))
    values = draft.noise + draft.signal + draft.rest
    snr = 10 * np.log10(draft.signal.var() * len(values) / draft.noise.var())
    events = tuple((int(start), int(stop)) for start, stop in draft.events)
    return Series(
        _standardize(values) if draft.normalized else values, label, draft.family, events, draft.parameters, snr
    )


def write_csv(series: Series, path: Path) -> None:
    """Write the values as CSV with the columns time (sample number) and data, to six significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{time},{value:.6g}" for time, value in enumerate(series.values.tolist())]
    path.write_text("\n".join(["time,data", *rows, ""]), encoding="utf-8")


def describe(series: Series) -> dict[str, Any]:
    """What is known of a series besides its values: ``length`` and the other fields of Series."""
    fields = series._asdict()
    return {"length": len(fields.pop("values")), **fields}


def write_metadata(described: dict[str, Series], path: Path, seed: int = settings.SEED) -> None:
    """Write the descriptions of series, by file name, as one JSON file."""
    content = {"version": VERSION, "seed": seed, "series": {name: describe(s) for name, s in described.items()}}
    path.write_text(json.dumps(content, indent=1, default=lambda part: part.tolist()), encoding="utf-8")

"""Kills at random moments and mutated inputs, many of each: ``python -m tests.campaign [KILLS] [MUTATIONS]``.

Kills: a process in the middle of a training, of writing a data set, of ablations or of drawing figures gets SIGKILL;
the same command is then given again, which must end well and leave the files of a run that was never killed, no more.
Mutations: CSV tables in other dialects, and damaged images, masks, checkpoints and settings, all read by this process.
What is read must be what was written; all else must be refused in one line, within SECONDS and MEGABYTES.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from src import ablations, checkpoints, road, series, settings, system
from src.__main__ import report_errors
from src.ablations.bench import Bench
from src.defects.data import read_mask
from src.images import read_image
from src.series.csv_files import read_csv
from src.synthetic import series_plots
from tests.series.helpers import TINY, write_plots

SECONDS, MEGABYTES = 30, 3000  # bounds of one mutated input; of the whole process
CONFIG = replace(TINY, cross_validate=True, folds=2)


class Failure(Exception):
    """What the program must not do, with the file that shows it."""


# ---------------------------------------------------------------------------------------------------- kills
def train() -> None:
    """A network for each of two folds and one for all, two epochs each."""
    series.train(CONFIG, settings.DATA_DIR / "plots", run_dir=settings.RUNS_DIR / "a", out=settings.RUNS_DIR / "a.pth")


def write_data() -> None:
    """27 plots."""
    series_plots.write_dataset(settings.DATA_DIR / "mini", counts=dict.fromkeys(("train", "val", "test"), 1), workers=1)


def ablate() -> None:
    """Two variants, a seed each."""
    ablations.run(["toy"], seeds=1)


def draw() -> None:
    """The figures of a trained network."""
    model = system.load(series, settings.WEIGHTS_DIR / "a.pth", CONFIG)
    system.write_figures(series, model, settings.DATA_DIR / "plots", "plots")


JOBS = (train, write_data, ablate, draw)


def in_child(job: Callable[[], None], folder: Path, seconds: float | None = None) -> int | None:
    """Exit code of a job in a forked process that has its folders in ``folder``; None if killed after ``seconds``."""
    child = os.fork()
    if not child:
        for name in ("DATA", "WEIGHTS", "RESULTS", "FIGURES", "RUNS"):
            setattr(settings, f"{name}_DIR", folder / name.lower())
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 99  # a traceback
        try:
            code = report_errors(job)
        finally:
            os._exit(code)
    end = time.monotonic() + (seconds or 600)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def listing(folder: Path) -> set[str]:
    """All files below a folder, hidden ones too, but logs, which every start begins anew."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {name for name in files if "events.out" not in name}


def kill(jobs: dict[str, tuple[Callable, Path, float, set[str]]], rng: random.Random, work: Path) -> str:
    """One kill and the run after it."""
    job, start, duration, expected = jobs[name := rng.choice(sorted(jobs))]
    folder = work / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    killed = in_child(job, folder, rng.uniform(0, duration)) is None
    if (code := in_child(job, folder)) != 0:
        raise Failure(f"{name} is stuck: exit code {code}, see {folder.with_suffix('.log')}")
    if listing(folder) != expected:
        raise Failure(f"{name} leaves {sorted(listing(folder) ^ expected)}")
    return f"{name} {'killed' if killed else 'had ended'}"


def prepare_kills(work: Path) -> dict[str, tuple[Callable, Path, float, set[str]]]:
    """name -> (job, folder to start from, seconds that it takes, files that it leaves)."""
    start, jobs = work / "start", {}
    write_plots(start / "data/plots", {"train": 4})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    variants = {"width": {"4": {}, "5": {"width": 5}}}
    toy = Bench(series, CONFIG, ("classes",), variants, lambda trained: {"metrics": {"classes": 9.0}, "scoring": {}})
    ablations.BENCHES["toy"] = replace(toy, train=partial(series.train, root=start / "data/plots"))
    for job in JOBS:
        folder, begin = work / job.__name__, time.monotonic()
        shutil.copytree(start, folder)
        if (code := in_child(job, folder)) != 0:
            raise Failure(f"{job.__name__} fails: exit code {code}, see {folder.with_suffix('.log')}")
        jobs[job.__name__] = job, start, time.monotonic() - begin, listing(folder)
        if job is train:  # what figures are drawn of
            start = work / "trained"
            shutil.copytree(folder, start)
            (start / "weights").mkdir()
            shutil.copy(folder / "runs/a_folds.pth", start / "weights/a.pth")
            shutil.rmtree(start / "runs")
    return jobs


# ------------------------------------------------------------------------------------------------ mutations
def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, cut out, blanked or repeated."""
    at, length = rng.randrange(len(content)), rng.randrange(1, 200)
    kinds = (
        lambda: content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
        lambda: content[:at],
        lambda: content[:at] + content[at + length :],
        lambda: content[:at] + bytes(len(content[at : at + length])) + content[at + length :],
        lambda: content[:at] + content[at : at + length] * 2 + content[at + length :],
    )
    return rng.choice(kinds)()


def table(rng: random.Random, path: Path) -> tuple[Callable, np.ndarray]:
    """A series in some dialect beside some columns; what is read of it must have the series' shape."""
    count = rng.randrange(60, 200)
    values = np.round(rng.choice((1, 100, 5000)) * (np.sin(np.arange(count) / 9) + (np.arange(count) > 50)), 2)
    dialects = ((",", ".", ""), (";", ",", ""), (";", ",", "."), ("\t", ".", ","), ("|", ".", ""))
    delimiter, mark, group = rng.choice(dialects)
    times = {
        "": [f"{i}" for i in range(count)],
        "time": [f"{1700000000 + 60 * i + rng.randrange(9)}" for i in range(count)],
        "Datum": [f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00" for i in range(count)],
        "year": [str(1800 + i) for i in range(count)],
    }
    plain = [format(value, "," if group else "").translate({44: group, 46: mark}) for value in values]
    columns = {name: times[name] for name in times if rng.random() < 0.4} | {"level": plain}
    if rng.random() < 0.3:
        columns["other"] = [str(rng.randrange(1, 9)) for _ in range(count)]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    lines = [delimiter.join(row) for row in rows[rng.random() < 0.2 :]]
    before = rng.choice(("", "# a logger\n", "\n", f"sep={delimiter}\n"))
    encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16"))
    path.with_suffix(".csv").write_text(before + rng.choice(("\n", "\r\n")).join(lines), encoding=encoding, newline="")
    return lambda: unit(read_csv(path.with_suffix(".csv"))), unit(values)


def unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


def damaged_file(read: Callable, original: Path, rng: random.Random, path: Path) -> tuple[Callable, object]:
    """A file with damaged bytes: it reads as the original or not at all."""
    target = path.with_suffix(original.suffix)
    target.write_bytes(damaged(original.read_bytes(), rng))
    return lambda: read(target), read(original)


def setting(rng: random.Random, path: Path) -> tuple[Callable, object]:
    """A setting of some value: the config says what it holds, or refuses."""
    name = rng.choice(list(road.Config().plain()))
    values = ("-1", "0", "nan", "inf", "1e400", "None", "", "[", "(1,)", "'x'", "9" * 400, "True", "{}", "1.5")
    return lambda: road.Config().override([f"{name}={rng.choice(values)}"]), None


def same(a: object, b: object) -> bool:
    """Whether two results of a reader are equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and np.allclose(a, b, atol=1e-9)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def prepare_mutations(work: Path) -> dict[str, Callable]:
    """name -> what makes a mutated input in a path's place: (a call that reads it, the result that it may have)."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(work / "image.png")
    Image.fromarray(np.uint8(255 * (rng.random((40, 50)) < 0.1))).save(work / "mask.png")
    checkpoints.save(work / "net.pth", {"a": torch.randn(50, 40)}, half=False, config={}, extras={})
    return {
        "csv": table,
        "setting": setting,
        "image": partial(damaged_file, read_image, work / "image.png"),
        "mask": partial(damaged_file, read_mask, work / "mask.png"),
        "checkpoint": partial(damaged_file, lambda path: checkpoints.load(path)["weights"], work / "net.pth"),
    }


def mutate(kinds: dict[str, Callable], rng: random.Random, work: Path) -> str:
    """One mutated input, read."""
    read, expected = kinds[name := rng.choice(sorted(kinds))](rng, work / "mutated")
    said, begin = "", time.monotonic()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            result = read()
    except settings.InputError as error:
        said = str(error)
    except Exception as error:
        raise Failure(f"{name}: {type(error).__name__}: {error}") from error
    if said and len(said.splitlines()) > 1:
        raise Failure(f"{name}: more than one line: {said}")
    if not said and expected is not None and not same(result, expected):
        raise Failure(f"{name}: another result than was written")
    if (seconds := time.monotonic() - begin) > SECONDS:
        raise Failure(f"{name}: {seconds:.0f} s")
    return f"{name} {'refused' if said else 'read'}"


# --------------------------------------------------------------------------------------------------- all
def campaign(title: str, one: Callable[[random.Random], str], count: int, work: Path) -> int:
    """Number of failures among ``count`` calls, each with its seed; what failed is kept in ``work``."""
    outcomes, failures, begin = Counter(), 0, time.monotonic()
    for seed in range(count):
        try:
            outcomes[one(random.Random(seed))] += 1
        except Failure as error:
            failures += 1
            print(f"{title}, seed {seed}: {error}", file=sys.stderr)
            for file in work.glob("mutated.*"):
                shutil.copy(file, work / f"failed_{title}_{seed}{file.suffix}")
    counts = ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items()))
    print(f"{title}: {count} tried, {failures} failed, {time.monotonic() - begin:.0f} s ({counts})")
    return failures


def main(kills: int = 200, mutations: int = 1000) -> int:
    """Number of failures; prints what was tried."""
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    settings.DEVICE = torch.device("cpu")
    work = Path(tempfile.mkdtemp(prefix="campaign_"))
    kinds = prepare_mutations(work)
    failures = campaign("mutations", lambda rng: mutate(kinds, rng, work), mutations, work)
    if kills:
        jobs = prepare_kills(work)
        failures += campaign("kills", lambda rng: kill(jobs, rng, work), kills, work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak memory {peak} MB, of {MEGABYTES} allowed; files in {work}")
    return failures + (peak > MEGABYTES)


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))

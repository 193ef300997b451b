"""What each choice is worth: one setting changed at a time, every training from several seeds.

``BENCHES`` is the table: of each system, a small base config on mini data, factors, and the variants of each factor as
changes to the base; and of two real data sets what could differ there. ``run`` fills in the records that are missing
under ``assets/results/ablations``; ``table`` and ``figure`` show them. Nothing is measured on a test split: road and
defects are evaluated on images of another seed, sets and series on validation data, or more of it.
"""

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from src import checkpoints, plots, records, settings
from src.ablations.bench import REMOVED, Bench
from src.ablations.defects import DEFECTS
from src.ablations.road import ROAD
from src.ablations.series import PLOTS, SERIES
from src.ablations.sets import CIFAR100, SETS

BENCHES = {"road": ROAD, "defects": DEFECTS, "sets": SETS, "series": SERIES, "cifar100": CIFAR100, "plots": PLOTS}
BASE = "base"  # the record that every factor shares
SEEDS = 3
PROTOCOL = (
    "One training per seed from the base config with one setting changed. road: 48 fresh scenes with anomalies (mIoU "
    "over known classes; AUPR of the max logit, pooled). defects: fresh parts, 20 good and 40 defective. sets: 2,000 "
    "sets of validation images. series: 4,500 fresh series of the validation stream. Real data: their validation split."
)


# -------------------------------------------------------------------------------------------------- runs
def record_name(factor: str, variant: str, entry: Any) -> str:
    """Of a variant; those that change nothing share one record."""
    if entry == {}:
        return BASE
    return "".join(c if c.isalnum() else "_" for c in f"{factor}__{variant}").lower()


def variants(bench: Bench) -> dict[str, Any]:
    """Record name -> entry of the table, the base first."""
    entries = {BASE: {}}
    for factor, of_factor in bench.factors.items():
        entries |= {record_name(factor, variant, entry): entry for variant, entry in of_factor.items()}
    return entries


def _record(bench_name: str, name: str) -> dict:
    path = records.record_path("ablations", f"{bench_name}/{name}")
    return records.load("ablations", f"{bench_name}/{name}") if path.exists() else {"runs": {}}


def missing_runs(names: Sequence[str], seeds: int, only: str = "") -> Iterator[tuple[str, str, int]]:
    """(bench, record, seed) of each run that has no record yet; ``only``: part of a record's name."""
    for bench_name in names:
        for name, entry in variants(BENCHES[bench_name]).items():
            if only not in name or entry == REMOVED:
                continue
            record = _record(bench_name, name)
            require_same_table(bench_name, name, entry, record)
            for seed in range(settings.SEED, settings.SEED + seeds):
                if str(seed) not in record["runs"]:
                    yield bench_name, name, seed


def description(bench: Bench, entry: Any) -> dict:
    """The settings in a record: the base, and what was changed."""
    base = {key: value for key, value in bench.base.plain().items() if key != "seed"}
    if callable(entry):
        return {"base": base, "changes": {"method": entry.__name__}}
    return records.plain({"base": base, "changes": {key: _portable(value) for key, value in entry.items()}})


def _portable(value: Any) -> Any:
    return value.relative_to(settings.ROOT).as_posix() if isinstance(value, Path) else value


def require_same_table(bench_name: str, name: str, entry: Any, record: dict) -> None:
    """Raise InputError if a record was measured with another base or other changes than the table has now.

    Settings that were added since the record, or removed, count as `checkpoints.require_same_config` counts them.
    """
    if not record["runs"]:
        return
    bench, base = BENCHES[bench_name], BENCHES[bench_name].base
    measured = type(base)().plain() | base.current(record["base"]) | {"seed": base.seed}
    has_same_base = not checkpoints.config_differences(base.plain(), measured)
    if not has_same_base or base.current(record["changes"]) != description(bench, entry)["changes"]:
        path = records.record_path("ablations", f"{bench_name}/{name}")
        command = f"python -m src ablate {bench_name} --only {name}"
        raise settings.InputError(f"{path} was measured with other settings: delete it and run `{command}` again")


def run(names: Sequence[str], seeds: int = SEEDS, only: str = "") -> None:
    """Run what has no record yet, one training after the other; what was interrupted is resumed."""
    known = [name for bench in names for name in variants(BENCHES[bench])]
    if only and not any(only in name for name in known):
        raise settings.InputError(f"{only}: no record's name holds that; there are {', '.join(known)}")
    tasks = list(missing_runs(names, seeds, only))
    if not tasks:
        print("every run has its record already")
    for bench_name, name, seed in (bar := tqdm(tasks, "ablations")):
        bar.set_postfix_str(f"{bench_name}/{name}, seed {seed}")
        _run_and_record(bench_name, name, seed)


def _run_and_record(bench_name: str, name: str, seed: int) -> None:
    bench, start = BENCHES[bench_name], time.monotonic()
    entry = variants(bench)[name]
    measured = run_one(bench, entry, seed, settings.RUNS_DIR / "ablations" / bench_name / f"{name}_{seed}")
    measured |= {"wall_time": round(time.monotonic() - start, 1), "git_revision": records.git_revision()}
    content = {
        "command": f"python -m src ablate {bench_name} --only {name}",
        "protocol": PROTOCOL,
        "device": records.device_name(),
        "torch": str(torch.__version__),
        **description(bench, entry),
    }
    content["runs"] = dict(sorted((_record(bench_name, name)["runs"] | {str(seed): measured}).items()))
    records.write(content, records.record_path("ablations", f"{bench_name}/{name}"))


def run_one(bench: Bench, entry: Any, seed: int, folder: Path) -> dict:
    """Train one variant with one seed and evaluate it; what training prints goes to ``folder/log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, redirect_stdout(log):
        if callable(entry):
            return entry(replace(bench.base, seed=seed))
        changes = {"weights": bench.weights, **entry}
        weights, first = changes.pop("weights"), changes.pop("start", None)
        train = bench.train or bench.system.train
        config = replace(bench.base, seed=seed)
        if first:
            out = folder / "start.pth"
            weights = train(replace(config, **first), weights=weights, run_dir=folder / "start", out=out).source
        trained = train(replace(config, **changes), weights=weights, run_dir=folder / "run", out=folder / "weights.pth")
        return bench.evaluate(trained)


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m src ablate``."""
    options = argparse.ArgumentParser(prog="python -m src ablate", description=__doc__.splitlines()[0])
    options.add_argument("bench", nargs="?", choices=BENCHES, help="default: all whose data are there")
    options.add_argument("--seeds", type=int, default=SEEDS, help=f"trainings of each variant (default: {SEEDS})")
    options.add_argument("--only", default="", metavar="NAME", help="the records whose name holds this")
    return options


def main(arguments: Sequence[str]) -> None:
    """``python -m src ablate [BENCH] [--seeds N] [--only NAME]``."""
    options = parser().parse_args(arguments)
    names = [options.bench] if options.bench else list(BENCHES)
    missing = [name for name in names if not BENCHES[name].root.exists()]
    if options.bench and missing:
        raise settings.InputError(
            f"{BENCHES[options.bench].root} is missing, and {options.bench} is trained on it; "
            "`make data` writes the mini sets, ./download.sh fetches real ones"
        )
    for name in missing:
        print(f"{name}: left out, because its data are not at {BENCHES[name].root}")
    run([name for name in names if name not in missing], options.seeds, options.only)


# ------------------------------------------------------------------------------------------------ results
def costs() -> dict[str, dict[str, Any]]:
    """Rows for ``records.table``: of each bench its settings, its runs, the median run's seconds, all runs' minutes."""
    rows = {}
    for bench_name, bench in BENCHES.items():
        of_records = [_record(bench_name, name)["runs"].values() for name in variants(bench)]
        seconds = sorted(run["wall_time"] for runs in of_records for run in runs)
        rows[bench_name] = {"settings": len(of_records), "runs": len(seconds)}
        if seconds:
            rows[bench_name] |= {"median s": seconds[len(seconds) // 2], "all, min": sum(seconds) / 60}
    return rows


def summary(bench_name: str) -> dict[str, dict[str, dict]]:
    """factor -> variant -> metric -> values by seed (N,), of all records that exist; scoring factors come last.

    ``in_use`` marks the variant of the base, ``removed`` one that is gone from the code. Of a scoring factor the first
    metric alone is known.
    """
    bench, factors = BENCHES[bench_name], {}
    for factor, entries in bench.factors.items():
        for variant, entry in entries.items():
            runs = _record(bench_name, record_name(factor, variant, entry))["runs"].values()
            row = {metric: np.array([run["metrics"][metric] for run in runs]) for metric in bench.metrics}
            if runs:
                row |= {"in_use": entry == {}, "removed": entry == REMOVED}
                factors.setdefault(bench.label(factor), {})[bench.label(variant)] = row
    base = list(_record(bench_name, BASE)["runs"].values())
    for factor, in_use in bench.baseline.items():
        for variant in base[0]["scoring"][factor] if base else ():
            values = np.array([run["scoring"][factor][variant] for run in base])
            row = {bench.metrics[0]: values, "in_use": variant == in_use, "removed": False, "paired": True}
            factors.setdefault(bench.label(factor), {})[bench.label(variant)] = row
    return factors


def variant_in_use(rows: Mapping[str, dict]) -> str:
    """The variant of a factor that the base has."""
    return next(name for name, row in rows.items() if row["in_use"])


def verdict(values: np.ndarray, base: np.ndarray, paired: bool) -> str:
    """``better`` or ``worse`` where no seed disagrees, else ``as good``; a dash with fewer seeds than SEEDS.

    Every value above (or below) every one of the base's; of scores of the same networks (``paired``), each network's.
    By chance alone this happens in one of ten comparisons of three seeds, and in one of four paired ones.
    """
    if len(values) < SEEDS:
        return "–"
    differences = values - base if paired else np.subtract.outer(values, base)
    return "better" if (differences > 0).all() else "worse" if (differences < 0).all() else "as good"


def table(bench_name: str) -> dict[str, dict[str, str]]:
    """Rows for ``records.table``: how the first metric compares with the variant in use; each metric's mean ± std."""
    metrics, rows = BENCHES[bench_name].metrics, {}
    for factor, entries in summary(bench_name).items():
        base = entries[variant_in_use(entries)][metrics[0]]
        for variant, row in entries.items():
            compared = "in use" if row["in_use"] else verdict(row[metrics[0]], base, row.get("paired", False))
            cells = {metric: _spread(row[metric]) for metric in metrics if metric in row}
            rows[f"{factor}: {variant}"] = {"verdict": compared + ", removed" * row["removed"]} | cells
    return rows


def decisive(bench_name: str) -> dict[str, dict[str, str]]:
    """Rows of ``table`` that are better or worse in every seed, of trained factors, each beside the variant in use.

    Named ``bench, factor: variant``; with the verdict and the first metric's mean ± std.
    """
    bench, rows = BENCHES[bench_name], {}
    of_table, scored = table(bench_name), [bench.label(factor) for factor in bench.baseline]
    for factor, entries in summary(bench_name).items():
        of_factor = {f"{factor}: {variant}": of_table[f"{factor}: {variant}"] for variant in entries}
        decided = {name: row for name, row in of_factor.items() if not row["verdict"].startswith(("as good", "–"))}
        if len(decided) > 1 and factor not in scored:  # more than the variant in use
            for name, row in decided.items():
                spread = f"{bench.metrics[0]} {row[bench.metrics[0]]}"
                rows[f"{bench_name}, {name}"] = {"verdict": row["verdict"], "mean ± std": spread}
    return rows


def _spread(values: np.ndarray) -> str:
    mean, unbroken = f"{values.mean():.3f}", "\u00a0±\u00a0"  # no line break around it
    return f"{mean}{unbroken}{values.std(ddof=1):.3f}" if len(values) > 1 else mean


def figure(bench_name: str) -> Figure:
    """Every run of a bench as a dot, by factor and variant."""
    metric, factors = BENCHES[bench_name].metrics[0], summary(bench_name)
    values = {factor: {name: row[metric] for name, row in entries.items()} for factor, entries in factors.items()}
    in_use = {factor: variant_in_use(entries) for factor, entries in factors.items()}
    return plots.dots(values, in_use, metric.replace("_", " "))

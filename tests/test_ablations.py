"""The table of ablations: what is still to be run, how a run is made, and what is read from the records."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src import ablations, checkpoints, defects, records, road, settings, system
from src.__main__ import main
from src.ablations.bench import REMOVED, Bench
from src.ablations.defects import evaluate_on
from src.ablations.road import sml_parts
from src.config import SystemConfig
from src.defects.scores import HEADLINE
from src.road.data import open_split
from src.synthetic import street_scenes, textures

COMMITTED = Path(records.__file__).parents[1] / "assets/results/ablations"


@dataclass(frozen=True)
class Config(SystemConfig):
    REMOVED = {"wide": False}

    size: int = 1
    deep: bool = False


def evaluate(trained) -> dict:
    value = trained.config.size + trained.config.seed / 100
    return {"metrics": {"gain": value, "loss": -value}, "scoring": {"rule": {"plain": value, "clever": value + 1}}}


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """The trainings of a bench ``toy`` in place of all others, which learn nothing: (config, weights, out) of each."""
    calls = []

    def train(config, *, weights, run_dir, out):
        calls.append((config, weights, out))
        print("epoch 1/1")
        return SimpleNamespace(config=config, source=out)

    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    bench = Bench(
        system=SimpleNamespace(train=train, FOLDERS={"toy": "data"}),
        base=Config(dataset="toy"),
        metrics=("gain", "loss"),
        evaluate=evaluate,
        labels={"size": "side", "small": "a small one"},
        baseline={"rule": "plain"},
        weights=settings.ROOT / "given.pth",
        factors={
            "size": {"1": {}, "5 x 5": {"size": 5}, "other weights": {"weights": None, "size": 2}},
            "first": {"nothing": {}, "small": {"start": {"size": 9, "deep": True}}},
            "method": {"learned": {}, "by a rule": by_rule},
        },
    )
    monkeypatch.setattr(ablations, "BENCHES", {"toy": bench})
    monkeypatch.setattr(settings, "RESULTS_DIR", tmp_path / "results")
    monkeypatch.setattr(settings, "RUNS_DIR", tmp_path / "runs")
    (tmp_path / "data").mkdir()
    return calls


def by_rule(config) -> dict:
    return evaluate(SimpleNamespace(config=replace(config, size=6)))


def written() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in settings.RESULTS_DIR.rglob("*.json")}


# -------------------------------------------------------------------------------------------------- runs
def test_every_variant_is_trained_from_every_seed_and_the_base_once_for_all_factors(trainings):
    ablations.run(["toy"], seeds=2)
    assert sorted(written()) == ["base", "first__small", "method__by_a_rule", "size__5_x_5", "size__other_weights"]
    assert all(list(record["runs"]) == ["42", "43"] for record in written().values())
    sizes_and_seeds = [(config.size, config.seed) for config, *_ in trainings]
    assert sizes_and_seeds[:6] == [(1, 42), (1, 43), (5, 42), (5, 43), (2, 42), (2, 43)]
    assert sizes_and_seeds[6:] == [(9, 42), (1, 42), (9, 43), (1, 43)]  # with an earlier training
    assert written()["size__5_x_5"]["runs"]["43"]["metrics"] == {"gain": 5.43, "loss": -5.43}
    assert written()["method__by_a_rule"]["runs"]["42"]["metrics"]["gain"] == 6.42


def test_weights_come_from_the_bench_the_variant_or_an_earlier_training(trainings):
    ablations.run(["toy"], seeds=1)
    by_size = [(config.size, weights) for config, weights, _ in trainings]
    given, start = settings.ROOT / "given.pth", settings.RUNS_DIR / "ablations/toy/first__small_42/start.pth"
    assert by_size == [(1, given), (5, given), (2, None), (9, given), (1, start)]
    assert [out.name for *_, out in trainings] == ["weights.pth"] * 3 + ["start.pth", "weights.pth"]
    assert trainings[3][0].deep and not trainings[4][0].deep


def test_what_has_a_record_is_not_run_again(trainings, capsys):
    ablations.run(["toy"], seeds=1, only="size__5")
    ablations.run(["toy"], seeds=2)
    assert [(config.size, config.seed) for config, *_ in trainings if config.size == 5] == [(5, 42), (5, 43)]
    done = len(trainings)
    ablations.run(["toy"], seeds=2)
    assert len(trainings) == done and "every run has its record already" in capsys.readouterr().out


def test_a_run_that_was_taken_out_of_its_record_is_run_again_in_its_place(trainings):
    ablations.run(["toy"], seeds=3, only="size__5")
    (record,), path = written().values(), records.record_path("ablations", "toy/size__5_x_5")
    records.write(record | {"runs": {seed: run for seed, run in record["runs"].items() if seed != "43"}}, path)
    ablations.run(["toy"], seeds=3, only="size__5")
    assert [config.seed for config, *_ in trainings] == [42, 43, 44, 43]
    assert list(written()["size__5_x_5"]["runs"]) == ["42", "43", "44"]


def test_what_a_training_prints_goes_to_its_log(trainings, capsys):
    ablations.run(["toy"], seeds=1, only="base")
    assert "epoch" not in capsys.readouterr().out
    assert (settings.RUNS_DIR / "ablations/toy/base_42/log.txt").read_text() == "epoch 1/1\n"


def test_a_record_says_what_was_run(trainings):
    ablations.run(["toy"], seeds=1)
    record = written()["first__small"]
    assert record["command"] == "python -m src ablate toy --only first__small"
    assert record["changes"] == {"start": {"size": 9, "deep": True}} and record["base"]["size"] == 1
    assert "seed" not in record["base"] and record["protocol"] == ablations.PROTOCOL
    assert {"wall_time", "git_revision", "metrics", "scoring"} == record["runs"]["42"].keys()
    assert written()["method__by_a_rule"]["changes"] == {"method": "by_rule"}
    assert written()["size__other_weights"]["changes"] == {"weights": None, "size": 2}


@pytest.mark.parametrize(
    "change", [{"base": Config(dataset="toy", lr=0.5)}, {"factors": {"size": {"1": {}, "5 x 5": {"size": 6}}}}]
)
def test_a_record_of_another_table_is_refused_by_name(trainings, monkeypatch, change):
    ablations.run(["toy"], seeds=1, only="size__5")
    monkeypatch.setitem(ablations.BENCHES, "toy", replace(ablations.BENCHES["toy"], **change))
    with pytest.raises(settings.InputError, match=r"toy/size__5_x_5\.json .*other settings.*--only size__5_x_5"):
        ablations.run(["toy"], seeds=2)


def test_a_variant_that_is_gone_keeps_its_record_and_is_not_run(trainings, monkeypatch):
    """Its row says so; a record is of this table where it had what is gone as all have it now, and of none else."""
    ablations.run(["toy"])
    gone = {"size": {"1": {}, "5 x 5": REMOVED, "7": REMOVED}}
    monkeypatch.setitem(ablations.BENCHES, "toy", replace(ablations.BENCHES["toy"], factors=gone))
    assert list(ablations.missing_runs(["toy"], 9)) == [("toy", "base", seed) for seed in range(45, 51)]
    rows = ablations.table("toy")
    assert rows["side: 5 x 5"]["verdict"] == "better, removed" and "side: 7" not in rows
    record = written()["base"]
    for wide, base in ((False, {}), (True, {}), (False, {"deep": True})):
        older = record | {"base": {key: value for key, value in record["base"].items() if key != "deep"}}
        older["base"] |= {"wide": wide} | base
        if wide or base:
            with pytest.raises(settings.InputError, match="toy/base.json was measured with other settings"):
                ablations.require_same_table("toy", "base", {}, older)
        else:
            ablations.require_same_table("toy", "base", {}, older)


# ------------------------------------------------------------------------------------------ command line
def test_command_line(trainings, monkeypatch, capsys):
    assert main(["ablate", "toy", "--seeds", "1", "--only", "base"]) == 0
    assert sorted(written()) == ["base"]
    (settings.RESULTS_DIR.parent / "data").rmdir()
    assert main(["ablate", "toy"]) == 1 and "data is missing, and toy is trained on it" in capsys.readouterr().err
    assert main(["ablate"]) == 0 and "toy: left out, because its data are not at" in capsys.readouterr().out
    (settings.RESULTS_DIR.parent / "data").mkdir()
    capsys.readouterr()
    assert main(["ablate", "toy", "--only", "sise"]) == 1
    assert "sise: no record's name holds that; there are base, size__5_x_5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ablate", "garage"])


# ------------------------------------------------------------------------------------------------ results
def test_summary_and_table(trainings):
    ablations.run(["toy"], seeds=3)
    factors = ablations.summary("toy")
    assert list(factors) == ["side", "first", "method", "rule"]
    np.testing.assert_allclose(factors["side"]["5 x 5"]["gain"], [5.42, 5.43, 5.44])
    np.testing.assert_allclose(factors["rule"]["clever"]["gain"], [2.42, 2.43, 2.44])
    assert [ablations.variant_in_use(rows) for rows in factors.values()] == ["1", "nothing", "learned", "plain"]
    rows = ablations.table("toy")
    assert rows["side: 5 x 5"] == {
        "gain": "5.430\u00a0±\u00a00.010",
        "loss": "-5.430\u00a0±\u00a00.010",
        "verdict": "better",
    }
    assert next(iter(rows["side: 1"].items())) == ("verdict", "in use")  # first: narrow screens show it
    assert rows["first: a small one"]["verdict"] == "as good"
    assert rows["rule: clever"] == {"gain": "2.430\u00a0±\u00a00.010", "verdict": "better"}
    assert len(ablations.figure("toy").axes) == 4


def test_decisive_rows_are_of_trained_factors_and_name_the_variant_in_use(trainings):
    ablations.run(["toy"], seeds=3)
    rows = ablations.decisive("toy")
    assert rows["toy, side: 1"]["verdict"] == "in use"
    assert rows["toy, side: 5 x 5"] == {"verdict": "better", "mean ± std": "gain 5.430\u00a0±\u00a00.010"}
    assert not any("first: " in name or "rule: " in name for name in rows)


def test_what_was_not_run_is_left_out(trainings):
    ablations.run(["toy"], seeds=1, only="base")
    measured = {factor: list(entries) for factor, entries in ablations.summary("toy").items()}
    assert measured == {"side": ["1"], "first": ["nothing"], "method": ["learned"], "rule": ["plain", "clever"]}


def test_costs_count_what_was_run(trainings):
    ablations.run(["toy"], seeds=2, only="base")
    row = ablations.costs()["toy"]
    assert row["settings"] == 5 and row["runs"] == 2 and row["all, min"] >= 0


@pytest.mark.parametrize(
    ("values", "base", "paired", "expected"),
    [
        ([4, 5, 6], [1, 2, 3], False, "better"),
        ([0, -1, 0.5], [1, 2, 3], False, "worse"),
        ([3, 4, 5], [1, 2, 3], False, "as good"),
        ([2.5, 4, 5], [1, 2, 3], False, "as good"),
        ([1.1, 2.1, 3.1], [1, 2, 3], True, "better"),
        ([1.1, 2.1, 2.9], [1, 2, 3], True, "as good"),
        ([9, 9], [1, 2], True, "–"),
    ],
)
def test_verdict(values, base, paired, expected):
    assert ablations.verdict(np.array(values), np.array(base), paired) == expected


# ---------------------------------------------------------------------------------------------- the table
ENTRIES = [(bench, name) for bench in ablations.BENCHES for name in ablations.variants(ablations.BENCHES[bench])]


@pytest.mark.parametrize(("bench_name", "name"), ENTRIES)
def test_variants_are_settings_that_exist_and_differ_from_the_base(bench_name, name):
    bench = ablations.BENCHES[bench_name]
    entry = ablations.variants(bench)[name]
    if callable(entry) or entry == REMOVED:
        return
    changes = {key: value for key, value in entry.items() if key not in ("start", "weights")}
    config = replace(bench.base, **changes)
    assert name == "base" or changes.items() - vars(bench.base).items() or entry.keys() & {"start", "weights"}
    assert config.seed == settings.SEED and "seed" not in entry
    replace(bench.base, **entry.get("start", {}))


@pytest.mark.parametrize("bench_name", ablations.BENCHES)
def test_each_factor_has_one_variant_in_use(bench_name):
    for factor, entries in ablations.BENCHES[bench_name].factors.items():
        assert sum(entry == {} for entry in entries.values()) == 1, factor


MEASURED = sorted((path.parent.name, path.stem) for path in COMMITTED.rglob("*.json"))


@pytest.mark.parametrize(("bench_name", "name"), MEASURED)
def test_committed_records_are_of_this_table(bench_name, name):
    assert (bench_name, name) in ENTRIES, "the table has no such variant: delete the record"
    record = json.loads((COMMITTED / bench_name / f"{name}.json").read_text())
    entry = ablations.variants(ablations.BENCHES[bench_name])[name]
    if entry != REMOVED:
        ablations.require_same_table(bench_name, name, entry, record)
    assert len(record["runs"]) >= ablations.SEEDS
    assert not any(run["git_revision"].endswith("-dirty") for run in record["runs"].values())


def test_what_notebook_07_shows_is_measured_whole():
    text = (settings.ROOT / "notebooks/07_ablations.ipynb").read_text(encoding="utf-8")
    shown = {name for name in ablations.BENCHES if f'ablations.figure(\\"{name}\\")' in text}
    assert shown and not {entry for entry in ENTRIES if entry[0] in shown} - set(MEASURED)


# -------------------------------------------------------------------------------------------- evaluations
def test_parts_of_sml(tmp_path):
    """On two fresh scenes, by the committed mini model."""
    street_scenes.write_dataset(tmp_path / "road", {"train": 1, "val": 1, "test": 2}, seed=7, workers=1)
    trained = system.load(road, settings.WEIGHTS_DIR / "road/mini.pth", road.Config.mini())
    parts = sml_parts(trained, open_split("mini", tmp_path / "road", "test"))
    pooled = road.evaluate(trained, tmp_path / "road")["protocols"]["pooled"]
    assert parts["in full"] == pytest.approx(pooled["sml"]["aupr"], abs=1e-4)
    assert parts["neither"] == pytest.approx(pooled["sml_raw"]["aupr"], abs=1e-4)
    assert len(set(parts.values())) == len(parts)


def test_maps_are_scored_by_their_maximum_or_the_mean_of_a_few(tmp_path):
    """On a few fresh parts, by the committed mini model of fabrics."""
    root = tmp_path / "defects"
    textures.write_dataset(root, 7, {"train": 10, "test": 2, "defect": 1, "teacher": 1})
    path = settings.WEIGHTS_DIR / "defects/mini.pth"
    trained = system.load(defects, path, defects.Config.mini(), ["categories=fabric"])
    measured, metrics = evaluate_on(trained, root), defects.evaluate(trained, root)
    assert measured["metrics"]["image_auroc"] == metrics["image_auroc"]
    assert measured["scoring"]["image score"]["maximum"] == metrics["image_auroc"]
    assert measured["scoring"]["score"].keys() == {"error", "uncertainty", "sum", "calibrated"}
    assert measured["scoring"]["score"][HEADLINE] == metrics["image_auroc"]
    assert len(measured["scoring"]["image score"]) == 3


def test_teachers_are_kept_with_the_runs_and_imagenets_with_the_weights(monkeypatch):
    calls = []
    monkeypatch.setattr(defects, "train", lambda config, **options: calls.append(options))
    bench = ablations.BENCHES["defects"]
    folders = {}
    for factor in ("students", "compactness", "descriptor", "teacher"):
        for variant, entry in bench.factors[factor].items():
            bench.train(replace(bench.base, **entry), weights=None, run_dir=Path("run"), out=Path("out.pth"))
            folders[f"{factor} {variant}"] = calls[-1].get("teachers")
    shared = folders.pop("students 3")
    assert folders["teacher distilled on ImageNet's photographs"] is None
    assert shared and shared.is_relative_to(settings.RUNS_DIR)
    same = {name for name, folder in folders.items() if folder == shared}
    assert same == {"students 1", "students 5", "compactness mean", "descriptor 128", "teacher distilled"}
    others = [folder for name, folder in folders.items() if name not in same and folder]
    assert len(set(others)) == len(others) == 5


def test_the_committed_teacher_of_photographs_fits_its_variant():
    bench = ablations.BENCHES["defects"]
    config = replace(bench.base, **bench.factors["teacher"]["distilled on ImageNet's photographs"])
    net, _ = defects.train_teacher(config, 33, None, Path("unused"))
    assert net.descriptor == config.descriptor
    assert checkpoints.load(defects.teacher_path(config, 33))["config"]["backbone"] == "squeezenet1_0"

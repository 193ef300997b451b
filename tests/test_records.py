"""Records and tables, and the check that every number of the README is the one in its record."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from src import records, settings
from src.records import ResultError

PROJECT = Path(records.__file__).parents[1]


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "RESULTS_DIR", tmp_path / "results")


# --------------------------------------------------------------------------------------------- records
def test_write_and_load():
    path = records.write({"miou": 0.5, "curve": (1, float("nan")), 3: None}, records.record_path("road", "mini"))
    assert path == settings.RESULTS_DIR / "road" / "mini.json"
    assert records.load("road", "mini") == {"miou": 0.5, "curve": [1, None], "3": None}
    assert "NaN" not in path.read_text() and path.read_text().endswith("}\n")
    assert os.listdir(path.parent) == ["mini.json"]


def test_failed_write_keeps_the_old_record():
    path = records.write({"miou": 0.5}, records.record_path("road", "mini"))
    for value in (float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            records.write({"miou": value}, path)
    assert records.load("road", "mini") == {"miou": 0.5}
    assert os.listdir(path.parent) == ["mini.json"]


def test_missing_or_damaged_record_names_file_and_remedy():
    with pytest.raises(ResultError, match=r"road/none\.json is missing.*git checkout.*evaluate --json"):
        records.load("road", "none")
    path = records.write({}, records.record_path("road", "mini"))
    path.write_text('{"miou": ')
    with pytest.raises(ResultError, match=r"road/mini\.json is .*damaged.*git checkout.*evaluate --json"):
        records.load("road", "mini")


def test_value_by_dotted_key():
    record = {"miou": 0.5, "protocols": {"pooled": {"aupr": [0.1, 0.2]}}, "none": None}
    records.write(record, records.record_path("road", "mini"))
    assert records.value("road", "mini", "miou") == 0.5
    assert records.value("road", "mini", "protocols.pooled.aupr.1") == 0.2
    assert records.value("road", "mini", "none") is None


@pytest.mark.parametrize("key", ["auroc", "protocols.per_image", "miou.value", "curve.2", "curve.first", "none.x"])
def test_missing_entry_names_record_and_key(key):
    records.write({"miou": 0.5, "protocols": {}, "curve": [1, 2], "none": None}, records.record_path("road", "mini"))
    with pytest.raises(ResultError, match=f"road/mini has no entry '{key}'.*at '{key.split('.')[-1]}'"):
        records.value("road", "mini", key)


def test_metrics_without_a_record_are_shown_as_they_are():
    assert records.check_against_record({"miou": 0.7}, "road", "mini") == {"miou": 0.7}


def test_the_record_is_shown_where_numbers_agree():
    record = {"command": "the --split val", "miou": 0.5, "per_class": {"road": 0.9, "car": None}, "wall_time": 3.0}
    records.write(record, records.record_path("road", "mini"))
    agreeing = {"miou": 0.5005, "per_class": {"road": 0.9, "car": float("nan")}}
    assert records.check_against_record(agreeing, "road", "mini") == record
    with pytest.raises(ResultError, match=r"road/mini: per_class\.road is 0\.9 .*, 0\.5 .*lock.*`the --split val`"):
        records.check_against_record({"miou": 0.5, "per_class": {"road": 0.5}}, "road", "mini")
    with pytest.raises(ResultError, match="no number in common"):
        records.check_against_record({"IoU": 0.5}, "road", "mini")


def test_table():
    rows = {"MSP": {"AUPR": 0.12345, "n": 5}, "SML": {"AUPR": float("nan"), "FPR95": None, "note": "ours"}}
    assert records.table(rows, digits=2, corner="score").splitlines() == [
        "| score | AUPR | n | FPR95 | note |",
        "| --- | ---: | ---: | ---: | --- |",
        "| MSP | 0.12 | 5 | – | – |",
        "| SML | – | – | – | ours |",
    ]


def test_torch_is_not_loaded_before_it_is_needed():
    """The command line reads records and checks its arguments first, and torch takes seconds to import."""
    code = "import sys; from src import records, config, settings, files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


# ------------------------------------------------------------------------------------------ provenance
def test_fingerprint_depends_on_names_and_contents_alone(tmp_path):
    def write(root: Path, files: dict[str, str]) -> dict:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return records.fingerprint([root / name for name in files], root)

    first = write(tmp_path / "one", {"a/x": "1", "b": "2"})
    inner = [(name, hashlib.sha256(text).digest()) for name, text in ((b"a/x", b"1"), (b"b", b"2"))]
    assert first == {"files": 2, "sha256": hashlib.sha256(b"".join(n + b"\0" + d for n, d in inner)).hexdigest()}
    assert write(tmp_path / "two", {"b": "2", "a/x": "1"}) == first
    assert write(tmp_path / "three", {"a/x": "1", "b": "3"}) != first
    assert write(tmp_path / "four", {"a/y": "1", "b": "2"}) != first
    assert records.fingerprint([], tmp_path)["files"] == 0


def test_git_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    for name, value in {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "GIT_CONFIG_GLOBAL": os.devnull}.items():
        monkeypatch.setenv(name, value)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert records.git_revision() == "unknown"
    git("init")
    assert records.git_revision() == "unknown"  # no commit yet
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    revision = records.git_revision()
    assert len(revision) == 12 and git("rev-parse", "HEAD").startswith(revision)
    (tmp_path / "notes.md").write_text("outside src")
    assert records.git_revision() == revision
    (tmp_path / "src" / "code.py").write_text("2")
    assert records.git_revision() == revision + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert records.git_revision() == "unknown"


def test_provenance_has_every_field_and_is_json(tmp_path):
    record = records.provenance("python -m src", {"seed": 7, "size": (1, 2)}, {"files": 1}, "pooled", 1.234)
    origin = {"command", "git_revision", "config", "seed", "data", "protocol"}
    assert record.keys() == origin | {"wall_time", "device", "torch"}
    assert (record["seed"], record["config"]["size"], record["wall_time"]) == (7, [1, 2], 1.2)
    assert json.loads(records.write(record, tmp_path / "r.json").read_text()) == record
    assert settings.DEVICE.type != "cpu" or record["device"].startswith("cpu, ")


# ---------------------------------------------------------------------------------------------- README
# A number is annotated with its record (assets/results/<system>/<run>.json) and dotted key by a comment that
# follows it at once: 0.652<!-- road/camvid_test:miou -->
COMMENT = r"<!--\s*(?P<system>[\w-]+)/(?P<run>[\w.-]+):(?P<key>.+?)\s*-->"
ANNOTATED = re.compile(r"(?P<number>-?\d+(?:\.(?P<decimals>\d+))?)" + COMMENT)
REGION = re.compile(r"<!--\s*results\s*-->(.*?)<!--\s*/results\s*-->", re.DOTALL)


def number_problems(text: str) -> list[str]:
    """What is wrong with a document's numbers: annotated ones that differ from their record, annotations that
    follow no number, and decimal numbers between the results markers that have no annotation."""
    problems = []
    if not ANNOTATED.search(text):
        problems.append("no annotated number")
    for match in ANNOTATED.finditer(text):
        value = records.value(match["system"], match["run"], match["key"])
        if not isinstance(value, int | float) or isinstance(value, bool):
            problems.append(f"{match[0]}: the record has {value!r}")
        elif f"{value:.{len(match['decimals'] or '')}f}" != match["number"]:
            problems.append(f"{match[0]}: the record has {value}")
    problems += [f"{match[0]} follows no number" for match in re.finditer(COMMENT, ANNOTATED.sub("", text))]
    regions = REGION.findall(text)
    if not regions:
        problems.append("no <!-- results --> ... <!-- /results --> region")
    for region in regions:
        rest = ANNOTATED.sub("", region)
        problems += [f"{number} has no annotation" for number in re.findall(r"\d*\.\d+", rest)]
    return problems


@pytest.fixture
def record():
    content = {"miou": 0.65249, "images": 1500, "none": None, "ok": True, "per_class": {"traffic sign": 0.5}}
    return records.write(content | {"ci": [-0.125, 1.0]}, records.record_path("road", "camvid_test"))


@pytest.mark.parametrize(
    "shown",
    [
        "0.652<!-- road/camvid_test:miou -->",
        "**0.65<!--road/camvid_test:miou-->**",
        "1500<!-- road/camvid_test:images --> images, 3 seeds",
        "[-0.12<!-- road/camvid_test:ci.0 -->, 1.000<!-- road/camvid_test:ci.1 -->]",
        "0.50<!-- road/camvid_test:per_class.traffic sign -->",
    ],
)
def test_right_numbers_pass(record, shown):
    text = f"3.11\n<!-- results -->\n| a | {shown} |\n<!-- /results -->"
    assert number_problems(text) == []


@pytest.mark.parametrize(
    ("shown", "problem"),
    [
        ("0.653<!-- road/camvid_test:miou -->", "the record has 0.65249"),
        ("0.6525<!-- road/camvid_test:miou --> 65<!-- road/camvid_test:miou -->", "the record has 0.65249"),
        ("1499<!-- road/camvid_test:images -->", "the record has 1500"),
        ("0.0<!-- road/camvid_test:none -->", "the record has None"),
        ("1<!-- road/camvid_test:ok -->", "the record has True"),
        ("0.652<!-- road/camvid_test:miou --> and .65", ".65 has no annotation"),
        ("0.652 <!-- road/camvid_test:miou -->", "follows no number"),
        ("0.652%<!-- road/camvid_test:miou -->", "follows no number"),
        ("0.652", "0.652 has no annotation"),
        ("0.652", "no annotated number"),
    ],
)
def test_wrong_numbers_are_found(record, shown, problem):
    problems = number_problems(f"<!-- results -->\n| a | {shown} |\n<!-- /results -->")
    assert any(problem in line for line in problems), problems


def test_results_region_is_demanded(record):
    shown = "0.652<!-- road/camvid_test:miou -->"
    assert number_problems(shown) == ["no <!-- results --> ... <!-- /results --> region"]
    with pytest.raises(ResultError, match="no entry 'auroc'"):
        number_problems("0.652<!-- road/camvid_test:auroc -->")


def markdown_of(path: Path) -> str:
    """The text of a page, or of a notebook's Markdown cells."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", "main.ipynb"])
def test_numbers_of_a_page_are_those_of_the_records(monkeypatch, page):
    monkeypatch.setattr(settings, "RESULTS_DIR", PROJECT / "assets" / "results")
    assert number_problems(markdown_of(PROJECT / page)) == []

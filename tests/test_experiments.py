"""EXPERIMENTS.md is what the records and its source say."""

import pytest

from src import experiments, records, settings
from src.__main__ import main

ENTRY = """[[experiment]]
title = "A"
when = "road"
records = ["road/one", "ablations/road/base"]
hypothesis = "It works."
outcome = \"\"\"AUPR {road/one:scores.max logit.aupr},
of {road/one:images|,.0f} images.\"\"\"
lesson = "Learned."
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RESULTS_DIR", tmp_path / "results")
    one = {"git_revision": "abc", "scores": {"max logit": {"aupr": 0.12345}}, "images": 1500}
    records.write(one, records.record_path("road", "one"))
    runs = {"runs": {"42": {"git_revision": "old"}, "43": {"git_revision": "new"}}}
    records.write(runs, records.record_path("ablations", "road/base"))
    path = tmp_path / "experiments.toml"
    path.write_text(ENTRY)
    return path


def test_numbers_are_those_of_the_records(source):
    page = experiments.render(source)
    assert "## 1. A\n\n*road; records: `road/one` (abc), `ablations/road/base` (new)*" in page
    assert "- **Outcome.** AUPR 0.123, of 1,500 images.\n" in page
    records.write({**records.load("road", "one"), "images": 7}, records.record_path("road", "one"))
    assert "of 7 images" in experiments.render(source)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("road/one:images", "road/two:images", r"two\.json is missing"),
        ("images|", "pictures|", "no entry 'pictures'"),
        ('lesson = "Learned."', "", "experiment 1 lacks lesson"),
        ('title = "A"', 'title = ""', "experiment 1 lacks title"),
    ],
)
def test_what_is_missing_is_named(source, old, new, message):
    source.write_text(ENTRY.replace(old, new))
    with pytest.raises(settings.InputError, match=message):
        experiments.render(source)


def test_the_committed_page_is_not_stale():
    assert experiments.TARGET.read_text(encoding="utf-8") == experiments.render(), "run python -m src experiments"


def test_command_writes_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(experiments, "TARGET", tmp_path / "EXPERIMENTS.md")
    assert main(["experiments"]) == 0
    assert experiments.TARGET.read_text(encoding="utf-8") == experiments.render()
    assert "EXPERIMENTS.md" in capsys.readouterr().out

"""EXPERIMENTS.md, the log of what was tried and learned: written from ``assets/experiments.toml`` and the records.

Prose is written by hand in the TOML file; every number in it is a reference such as ``{road/mini_test:aupr}`` (three
decimals) or ``{series/plots_folds:plots|.0f}``, filled in from its record, so that none can go stale unseen.
"""

import re
import tomllib
from pathlib import Path

from src import records, settings

SOURCE = settings.ROOT / "assets" / "experiments.toml"
TARGET = settings.ROOT / "EXPERIMENTS.md"
REFERENCE = re.compile(r"\{(?P<system>\w+)/(?P<run>[\w/]+):(?P<key>[^{}|]+)(?:\|(?P<format>[^{}]+))?\}")
FIELDS = ("title", "when", "records", "hypothesis", "outcome", "lesson")
HEAD = """# Experiments

What was tried, in order, what was expected, and what came of it. Written by `python -m src experiments` from
`assets/experiments.toml` and the records under `assets/results`: every number is its record's.
"""


def filled(text: str) -> str:
    """The text with each reference replaced by its number; ResultError where a record or entry is missing."""

    def number(match: re.Match) -> str:
        return format(records.value(match["system"], match["run"], match["key"]), match["format"] or ".3f")

    return REFERENCE.sub(number, text)


def render(source: Path = SOURCE) -> str:
    """The page. Raises InputError for an entry that lacks a field."""
    sections = [HEAD]
    for number, entry in enumerate(tomllib.loads(source.read_text(encoding="utf-8"))["experiment"], 1):
        if missing := [name for name in FIELDS if not entry.get(name)]:
            raise settings.InputError(f"{source}: experiment {number} lacks {', '.join(missing)}")
        paragraphs = {name: filled(" ".join(entry[name].split())) for name in ("hypothesis", "outcome", "lesson")}
        revisions = ", ".join(f"`{name}` ({_revision(name)})" for name in entry["records"])
        sections.append(
            f"## {number}. {entry['title']}\n\n*{entry['when']}; records: {revisions}*\n\n"
            + "\n".join(f"- **{name.capitalize()}.** {text}" for name, text in paragraphs.items())
            + "\n"
        )
    return "\n".join(sections)


def _revision(name: str) -> str:
    """The code that a record ``system/run`` was measured with; of several runs, the latest."""
    record = records.load(*name.split("/", 1))
    return record["git_revision"] if "git_revision" in record else [*record["runs"].values()][-1]["git_revision"]


def main() -> None:
    """``python -m src experiments``."""
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET}")

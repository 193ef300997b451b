"""A small case of each kind of the campaign of kills and mutated inputs, see ``tests.campaign``."""

import subprocess
import sys

import pytest

from src import settings
from tests import campaign


def test_mutated_inputs_are_read_right_or_refused(tmp_path, capsys):
    kinds = campaign.prepare_mutations(tmp_path)
    assert campaign.campaign("mutations", lambda rng: campaign.mutate(kinds, rng, tmp_path), 60, tmp_path) == 0
    said = capsys.readouterr().out
    assert all(f"{kind} refused" in said for kind in kinds) and "csv read" in said


@pytest.mark.parametrize("wrong", [lambda: 1 / 0, lambda: 8, lambda: _raise("two\nlines")])
def test_what_goes_wrong_is_seen(tmp_path, wrong):
    with pytest.raises(campaign.Failure, match="csv: (ZeroDivisionError|another result|more than one line)"):
        campaign.mutate({"csv": lambda rng, path: (wrong, 9)}, campaign.random.Random(0), tmp_path)


def _raise(text: str) -> None:
    raise settings.InputError(text)


def test_killed_runs_go_on_and_leave_nothing():
    command = [sys.executable, "-m", "tests.campaign", "4", "0"]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "kills: 4 tried, 0 failed" in done.stdout, done.stdout + done.stderr

"""Folders of generated data: whole or not there, kept where nothing changed, and no one else's ever deleted."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from src import settings
from src.synthetic import folders
from src.synthetic.folders import MARKER, fresh, run_tasks


class Killed(BaseException):
    """What stands for the end of the process: no clean-up is to run after it."""


def write(root: Path, text: str, version: int = 1, **choices) -> bool:
    """Write a data set of two files; says whether that was necessary."""
    with fresh(root, "letters", version, **choices) as folder:
        if folder:
            (folder / "deep").mkdir()
            (folder / "a.txt").write_text(text)
            (folder / "deep" / "b.txt").write_text(text)
        return folder is not None


def assert_whole(root: Path, text: str) -> None:
    """The data set is there, and nothing else is: neither beside it nor in it."""
    assert {path.name for path in root.parent.iterdir()} == {root.name}
    # a run that is killed as it begins to take the old data set away may leave a second marker in it
    assert {path.name for path in root.rglob("*")} - {folders.NEW_MARKER} == {MARKER, "a.txt", "deep", "b.txt"}
    assert (root / "a.txt").read_text() == (root / "deep" / "b.txt").read_text() == text


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set letters of version 1 and seed 3."""
    root = tmp_path / "deep" / "set"
    assert write(root, "one", seed=3)
    return root


def test_a_data_set_appears_when_it_is_whole(tmp_path):
    with fresh(tmp_path / "set", "letters", 1) as folder:
        (folder / "a.txt").touch()
        assert folder == tmp_path / "set.partial" and not (tmp_path / "set").exists()
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"a.txt", MARKER}
    assert not folder.exists()


def test_the_same_is_kept_and_anything_else_rebuilt(root):
    assert not write(root, "two", seed=3)
    assert_whole(root, "one")
    for number, change in enumerate(({"seed": 4}, {"seed": 4, "version": 2}, {"version": 2})):
        (root / "stale.txt").touch()
        assert write(root, str(number), **change)
        assert_whole(root, str(number))


def test_a_failure_leaves_the_old_and_nothing_half_written(root):
    with pytest.raises(ZeroDivisionError), fresh(root, "letters", 2) as folder:
        (folder / "half.txt").touch()
        raise ZeroDivisionError
    assert_whole(root, "one")


# Every change of the disk that `fresh` makes: a run is killed before the n-th of them, and halfway through it
STEPS = [(Path, "mkdir"), (Path, "write_text"), (Path, "replace"), (Path, "unlink"), (Path, "rename")]


def kill_at(monkeypatch, step: int) -> list[str]:
    """Let the step-th change of the disk be the last of this process; gives the names of those made."""
    made = []

    def count(name: str, change, *arguments, **options):
        made.append(name)
        if len(made) > step:
            if len(made) == step + 1 and name == "write_text":
                arguments[0].touch()  # opened, nothing written yet
            raise Killed
        return change(*arguments, **options)

    def rmtree_by_steps(folder, **options):
        for path in sorted(Path(folder).iterdir()):
            rmtree_by_steps(path) if path.is_dir() else path.unlink()
        count("rmdir", os.rmdir, folder)

    for kind, name in STEPS:
        change = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *a, _name=name, _change=change, **o: count(_name, _change, *a, **o))
    monkeypatch.setattr(shutil, "rmtree", rmtree_by_steps)
    return made


def test_a_run_killed_at_any_step_is_cleaned_up_by_the_next(tmp_path, monkeypatch):
    step, was_killed = 0, True
    while was_killed:
        root = tmp_path / f"{step}" / "set"
        write(root, "old")
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                write(root, "new", version=2)
                was_killed = False
            except Killed:
                pass
        for version, text in ((2, "new"), (1, "old")):  # the half removed old set is not taken for a whole one
            again = tmp_path / f"{step}" / f"{text}" / "set"
            shutil.copytree(root.parent, again.parent, ignore=shutil.ignore_patterns("new", "old"))
            write(again, text, version)
            assert_whole(again, text)
        step += 1
    assert step > 15


@pytest.mark.parametrize("marker", ["", "unfinished letters", '{"letters": 1, "seed": 3}'])
def test_leftovers_of_any_state_are_replaced(root, marker):
    left = root.with_name("set.partial")
    left.mkdir()
    (left / MARKER).write_text(marker)
    if marker:  # without one, nothing was written yet
        (left / "half.txt").touch()
    assert write(root, "two", 2)
    assert_whole(root, "two")


@pytest.mark.parametrize("name", ["set", "set.partial"])
@pytest.mark.parametrize("marker", [None, "", "unfinished numbers", '{"numbers": 1}'])
def test_folders_of_others_are_never_deleted(tmp_path, name, marker):
    theirs = tmp_path / name / "thesis.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    if marker is not None:
        (theirs.parent / MARKER).write_text(marker)
    with pytest.raises(settings.InputError, match=f"{name} holds other files than this data set: choose another root"):
        write(tmp_path / "set", "one")
    assert theirs.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_is_filled_and_a_file_refused(tmp_path):
    (tmp_path / "set").mkdir()
    assert write(tmp_path / "set", "one")
    (tmp_path / "file").touch()
    with pytest.raises(settings.InputError, match="file holds other files"):
        write(tmp_path / "file", "one")


def test_a_second_run_at_once_is_refused_and_changes_nothing(root):
    with fresh(root, "letters", 2) as folder:
        (folder / "a.txt").write_text("first")
        with pytest.raises(settings.InputError, match=r"another run is writing .*set\.partial: start again"):
            write(root, "second", 2)
        assert (folder / "a.txt").read_text() == "first" and (root / "a.txt").read_text() == "one"
    assert (root / "a.txt").read_text() == "first"
    assert not write(root, "second", 2)


def test_a_run_that_comes_just_too_late_keeps_what_the_other_wrote(root, monkeypatch):
    refuse = folders._refuse_other_files

    def other_run_first(folder, name):
        if folder == root:
            monkeypatch.setattr(folders, "_refuse_other_files", refuse)
            write(root, "other", 2)
        refuse(folder, name)

    monkeypatch.setattr(folders, "_refuse_other_files", other_run_first)
    assert not write(root, "late", 2)
    assert_whole(root, "other")


def square(number: int) -> int:
    if number < 0:
        raise settings.InputError(f"{number} is negative")
    return number * number


def process_of(_) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [None, 1, 2])
@pytest.mark.parametrize("count", [0, 3, 100])
def test_results_come_in_the_order_of_the_tasks(workers, count):
    assert run_tasks(square, range(count), "squares", workers) == [number * number for number in range(count)]


def test_few_tasks_stay_in_this_process_and_many_use_every_core(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert set(run_tasks(process_of, range(10), "few")) == {os.getpid()}
    assert os.getpid() not in run_tasks(process_of, range(folders.FEW_TASKS), "many")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_is_raised(workers):
    with pytest.raises(settings.InputError, match="-1 is negative"):
        run_tasks(square, [3, -1, 2], "squares", workers)


def note_process(_, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(0.05)


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def run_for_a_minute(root: str, notes: str) -> None:
    with fresh(root, "letters", 1):
        run_tasks(partial(note_process, folder=Path(notes)), range(2400), "notes", 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_killed_run_and_the_next_one_can_start(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    code = f"from {__name__} import run_for_a_minute; run_for_a_minute({str(tmp_path / 'set')!r}, {str(notes)!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=settings.ROOT) as run:
        deadline = time.monotonic() + 120
        while len(list(notes.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    workers = [int(path.name) for path in notes.iterdir()]
    assert len(workers) == 2
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert write(tmp_path / "set", "one")

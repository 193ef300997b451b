"""Folders of generated data: whole or not there, kept where nothing changed, and no one else's ever deleted."""

from pathlib import Path

import pytest

from src import settings
from src.synthetic.folders import MARKER, fresh


def write(root: Path, text: str, version: int = 1, **choices) -> bool:
    """Write a data set of one file; says whether that was necessary."""
    with fresh(root, "letters", version, **choices) as folder:
        if folder:
            (folder / "a.txt").write_text(text)
        return folder is not None


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
    assert not write(root, "two", seed=3) and (root / "a.txt").read_text() == "one"
    (root / "stale.txt").touch()
    for number, change in enumerate(({"seed": 4}, {"seed": 4, "version": 2}, {"version": 2})):
        assert write(root, str(number), **change)
        assert (root / "a.txt").read_text() == str(number) and not (root / "stale.txt").exists()


def test_a_failure_leaves_the_old_and_the_next_run_starts_anew(root):
    with pytest.raises(ZeroDivisionError), fresh(root, "letters", 2) as folder:
        (folder / "half.txt").touch()
        raise ZeroDivisionError
    assert (root / "a.txt").read_text() == "one" and (folder / "half.txt").exists()
    assert write(root, "two", 2)
    assert (root / "a.txt").read_text() == "two" and not (root / "half.txt").exists()


@pytest.mark.parametrize("name", ["set", "set.partial"])
@pytest.mark.parametrize("marker", [None, "unfinished numbers", '{"numbers": 1}'])
def test_folders_of_others_are_never_deleted(tmp_path, name, marker):
    theirs = tmp_path / name / "thesis.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    if marker:
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

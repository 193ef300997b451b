"""Files are written in one piece or not at all."""

import errno
import os

import pytest

from src import files, settings


def write(path, content: bytes = b"new") -> None:
    with files.atomic(path) as file:
        file.write(content)


def test_a_file_is_there_when_its_block_ends(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with files.atomic(path) as file:
        file.write(b"one")
        assert not path.exists()
    write(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    write(path, b"old")
    expected = settings.InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised, files.atomic(path) as file:
        file.write(b"half")
        raise error
    assert not isinstance(error, OSError) or "a.txt (No space left on device)" in str(raised.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(settings.InputError, match=r"^cannot write .*file/a\.txt \(.+\): free space, or choose another"):
        write(tmp_path / "file" / "a.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(settings.InputError, match=r"^cannot write .*folder \(Is a directory\)"):
        write(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_leftovers_of_one_file_are_removed(tmp_path):
    for name in (".a.pth.x1", ".b.pth.x1", "a.pth"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path / "a.pth")
    assert sorted(os.listdir(tmp_path)) == [".b.pth.x1", "a.pth"]

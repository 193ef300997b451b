"""Files written in one piece: a reader sees the old content or the new one, never a part."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from src import settings


@contextmanager
def atomic(path: Path | str) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` when the block ends, and is removed if the block fails.

    Folders above ``path`` are made. Raises InputError where the system refuses to write: read-only folder, full disk.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            message = f"cannot write {path} ({error.strerror or error}): free space, or choose another folder"
            raise settings.InputError(message) from error
        raise


def remove_leftovers(path: Path | str) -> None:
    """Remove the temporary files of ``path`` that a killed process left behind."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)

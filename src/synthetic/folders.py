"""Folders of generated data: written whole or not at all, recognised by a marker, and never in the place of others'."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src import settings

MARKER = ".version"  # tells a data set written here


def _check_own(folder: Path, name: str) -> None:
    marker = folder / MARKER
    own = marker.is_file() and name in marker.read_text()
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()) and not own:
        raise settings.InputError(f"{folder} holds other files than this data set: choose another root or remove them")


@contextmanager
def fresh(root: Path | str, name: str, version: int, **choices) -> Iterator[Path | None]:
    """Give the folder to write a data set into, <root>.partial, which takes root's place at the end of the block.

    Gives None where root holds that data set already: of the same name, version and choices (what JSON can hold). An
    exception leaves root as it was. Raises InputError if one of both folders holds anything but data of that name.
    """
    root, wanted = Path(root), json.dumps({name: version, **choices})
    if (root / MARKER).is_file() and (root / MARKER).read_text() == wanted:
        yield None
        return
    unfinished = root.with_name(root.name + ".partial")
    for folder in (root, unfinished):
        _check_own(folder, name)
    if unfinished.exists():  # left by a killed run
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    (unfinished / MARKER).write_text(f"unfinished {name}")
    yield unfinished
    if root.exists():
        shutil.rmtree(root)
    (unfinished / MARKER).write_text(wanted)
    unfinished.rename(root)

"""Folders of generated data: written whole or not at all, recognised by a marker, never in the place of other files."""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from src import settings

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not kept apart there
    fcntl = None

MARKER = ".version"  # says which data set a folder holds
NEW_MARKER = ".version.new"
FEW_TASKS = 64  # fewer are done in this process: where processes cannot be forked, starting them takes seconds


def _mark(folder: Path, text: str) -> None:
    (folder / NEW_MARKER).write_text(text)
    (folder / NEW_MARKER).replace(folder / MARKER)


def _contents(folder: Path) -> list[Path]:
    """What a folder holds besides its marker."""
    return [path for path in folder.iterdir() if path.name not in (MARKER, NEW_MARKER)]


def _empty(folder: Path) -> None:
    for path in _contents(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(folder: Path) -> None:
    _empty(folder)  # the marker goes last: a folder that is half removed is still recognised
    shutil.rmtree(folder)


def _refuse_other_files(folder: Path, name: str) -> None:
    marker = folder / MARKER
    is_data_set = marker.is_file() and name in marker.read_text()
    if folder.is_file() or (folder.is_dir() and _contents(folder) and not is_data_set):
        raise settings.InputError(f"{folder} holds other files than this data set: choose another root or remove them")


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_moved = not folder.exists() or not os.path.samestat(os.fstat(handle), folder.stat())
    except BlockingIOError:
        is_moved = True
    except OSError:  # a file system without locks
        return
    if is_moved:
        raise settings.InputError(f"another run is writing {folder}: start again when it has ended")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other runs out of it until the block, or this process, ends.

    Raises InputError if another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


@contextmanager
def fresh(root: Path | str, name: str, version: int, **choices) -> Iterator[Path | None]:
    """Give the folder to write a data set into, <root>.partial, which takes root's place at the end of the block.

    Gives None where root holds that data set already: of the same name, version and choices (what JSON can hold). An
    exception leaves root as it was and removes <root>.partial; what a killed run leaves, the next one removes. Raises
    InputError if one of both folders holds anything but data of that name, or while another run writes.
    """
    root, wanted, unfinished_mark = Path(root), json.dumps({name: version, **choices}), f"unfinished {name}"
    unfinished = root.with_name(f"{root.name}.partial")

    def is_written() -> bool:
        return (root / MARKER).is_file() and (root / MARKER).read_text() == wanted

    if is_written() and not unfinished.exists():
        yield None
        return
    for folder in (root, unfinished):
        _refuse_other_files(folder, name)
    with _locked(unfinished):
        if is_written():  # by another run just now, or before one was killed
            _remove(unfinished)
            yield None
            return
        try:
            _mark(unfinished, unfinished_mark)
            _empty(unfinished)
            yield unfinished
            _mark(unfinished, wanted)
            if root.exists():
                _mark(root, unfinished_mark)
                _remove(root)
            unfinished.rename(root)
        except BaseException:
            _remove(unfinished)
            raise


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 (H,W) or (H,W,3) as PNG; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=4)


def _exit_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that ends in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def run_tasks(work: Callable, tasks: Sequence, title: str, workers: int | None = None) -> list:
    """[work(task) for task in tasks] in `workers` processes, with a progress bar of this title.

    None means one process a core, or this one alone for few tasks; 1 is this one. An exception in a worker is raised.
    """
    if workers is None:
        workers = (os.cpu_count() or 1) if len(tasks) >= FEW_TASKS else 1
    if workers == 1:
        return list(tqdm(map(work, tasks), title, len(tasks), disable=None))
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        return list(tqdm(pool.map(work, tasks, chunksize=4), title, len(tasks), disable=None))

"""The archive to hand in: main.ipynb, the same as HTML, src and README; or what is still missing."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat

from src import settings

IDENTITY = ("Student ID", "Full name", "Institutional e-mail")
NOTEBOOK_BYTES, ARCHIVE_BYTES = 2_000_000, 20_000_000
KEPT = ("main.ipynb", "README.md", "requirements.txt", "src/**/*.py", "src/**/*.html")


def blank_fields(notebook) -> list[str]:
    """The identity fields that no cell fills in: a table row ``| field | value |`` without a value."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [name for name in IDENTITY if not re.search(rf"^\|\s*{name}\s*\|\s*[^|\s][^|]*\|", text, re.MULTILINE)]


def unexecuted(notebook) -> bool:
    """Whether the code cells were not run from top to bottom in one go."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    return counts != list(range(1, len(counts) + 1))


def problems(path: Path) -> list[str]:
    """What keeps a notebook from being handed in; re-executes it, which takes minutes, if nothing else does."""
    notebook = nbformat.read(path, 4)
    found = [f"{path.name}: {name} is blank in the first cell" for name in blank_fields(notebook)]
    if unexecuted(notebook):
        found.append(f"{path.name}: run all cells from top to bottom, and save")
    if path.stat().st_size > NOTEBOOK_BYTES:
        found.append(f"{path.name}: {path.stat().st_size:,} bytes, at most {NOTEBOOK_BYTES:,} are allowed")
    if not found and (told := _run("pytest", "-q", "--nbval", "-p", "no:cacheprovider", str(path))):
        found.append(f"{path.name}: its outputs are not what its cells give now; run all cells again\n{told}")
    return found


def _run(*command: str) -> str:
    """What a module's command prints if it fails, else nothing."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=settings.ROOT)
    return (done.stdout + done.stderr)[-2000:] if done.returncode else ""


def write(root: Path = settings.ROOT) -> Path:
    """``build/submission.zip``. Raises InputError that lists everything that is missing."""
    found = problems(root / "main.ipynb")
    build = root / "build"
    if not found and (told := _run("nbconvert", "--to", "html", "--output-dir", str(build), str(root / "main.ipynb"))):
        found.append(told)
    if found:
        raise settings.InputError("not ready to be handed in:\n  " + "\n  ".join(found))
    files = sorted(file for pattern in KEPT for file in root.glob(pattern))
    unfinished, archive = build / "submission.zip.partial", build / "submission.zip"
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(build / "main.html", "main.html")
        for file in files:
            packed.write(file, file.relative_to(root))
    if unfinished.stat().st_size > ARCHIVE_BYTES:
        raise settings.InputError(f"{unfinished} has more than {ARCHIVE_BYTES:,} bytes: make main.ipynb smaller")
    return unfinished.replace(archive)


def main() -> None:
    """``python -m src submission``."""
    print(f"wrote {write()}")

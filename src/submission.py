"""The archive to hand in: main.ipynb, the same as HTML, src and README; or what is still missing."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat

from src import files, settings

IDENTITY = ("Student ID", "Full name", "Institutional e-mail")
NOTEBOOK_BYTES, ARCHIVE_BYTES = 2_000_000, 20_000_000
TEMPLATES = f"--TemplateExporter.extra_template_basedirs={settings.ROOT / 'assets'}"
PAGE = ("--to", "html", "--template", "page", TEMPLATES, "--embed-images")  # as in the Makefile
INCLUDED = ("main.ipynb", "README.md", "requirements.txt", "src/**/*.py", "src/**/*.html")


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
    notebook, size = nbformat.read(path, 4), path.stat().st_size
    reasons = [f"{name} is blank in the first cell" for name in blank_fields(notebook)]
    if unexecuted(notebook):
        reasons.append("run all cells from top to bottom, and save")
    if size > NOTEBOOK_BYTES:
        reasons.append(f"{size:,} bytes, at most {NOTEBOOK_BYTES:,} are allowed")
    if not reasons and (failure := _run("pytest", "-q", "--nbval", "-p", "no:cacheprovider", str(path))):
        reasons.append(f"its outputs are not what its cells give now; run all cells again\n{failure}")
    return [f"{path.name}: {reason}" for reason in reasons]


def _run(*command: str) -> str:
    """What a module's command prints if it fails, else nothing."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=settings.ROOT)
    return (done.stdout + done.stderr)[-2000:] if done.returncode else ""


def write(root: Path = settings.ROOT) -> Path:
    """``build/submission.zip``. Raises InputError that lists everything that is missing."""
    notebook, build = root / "main.ipynb", root / "build"
    missing = problems(notebook)
    if not missing and (failure := _run("nbconvert", *PAGE, "--output-dir", str(build), str(notebook))):
        missing = [failure]
    if missing:
        raise settings.InputError("not ready to be handed in:\n  " + "\n  ".join(missing))
    archive = build / "submission.zip"
    with files.atomic(archive) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.write(build / "main.html", "main.html")
            for path in sorted(path for pattern in INCLUDED for path in root.glob(pattern)):
                packed.write(path, path.relative_to(root))
        if file.tell() > ARCHIVE_BYTES:
            raise settings.InputError(f"{archive} would exceed {ARCHIVE_BYTES:,} bytes: make main.ipynb smaller")
    return archive


def main() -> None:
    """``python -m src submission``."""
    print(f"wrote {write()}")

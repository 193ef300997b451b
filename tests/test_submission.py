"""The archive to hand in, and what is said when something is missing."""

import zipfile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from src import settings, submission
from src.__main__ import main

FILLED = "# T\n\n| | |\n|---|---|\n| Student ID | 42 |\n| Full name | Ada L. |\n| Institutional e-mail | a@b.edu |"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A complete project below tmp_path; ``project.failing`` holds the modules whose commands fail."""
    for name in ("README.md", "requirements.txt", "src/a.py", "src/system/b.py", "src/system/c.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    failing = set()

    def run(module, *arguments):
        if module == "nbconvert" and module not in failing:
            (tmp_path / "build").mkdir(exist_ok=True)
            (tmp_path / "build/main.html").write_text("<html>")
        return f"{module} says why" if module in failing else ""

    monkeypatch.setattr(submission, "_run", run)
    tmp_path.joinpath("main.ipynb").write_text(nbformat.writes(notebook()))
    return tmp_path, failing


def notebook(identity: str = FILLED, counts=(1, 2)):
    return new_notebook(cells=[new_markdown_cell(identity), *(new_code_cell("1", execution_count=n) for n in counts)])


def test_archive_holds_notebook_page_source_and_readme(project):
    root, _ = project
    path = submission.write(root)
    with zipfile.ZipFile(path) as packed:
        project_files = ["README.md", "main.html", "main.ipynb", "requirements.txt"]
        assert sorted(packed.namelist()) == [*project_files, "src/a.py", "src/system/b.py"]
        assert packed.read("main.html") == b"<html>"


@pytest.mark.parametrize("name", submission.IDENTITY)
def test_a_blank_field_is_named_and_nothing_is_run(project, name):
    root, failing = project
    failing.add("pytest")
    lines = [f"| {name} | |" if name in line else line for line in FILLED.splitlines()]
    (root / "main.ipynb").write_text(nbformat.writes(notebook("\n".join(lines))))
    with pytest.raises(settings.InputError) as error:
        submission.write(root)
    assert str(error.value).splitlines()[1:] == [f"  main.ipynb: {name} is blank in the first cell"]
    assert not (root / "build").exists()


def test_all_that_is_missing_is_said_at_once(project, monkeypatch):
    root, _ = project
    monkeypatch.setattr(submission, "NOTEBOOK_BYTES", 10)
    (root / "main.ipynb").write_text(nbformat.writes(notebook("# T", counts=(1, None))))
    with pytest.raises(settings.InputError) as error:
        submission.write(root)
    text = str(error.value)
    assert all(name in text for name in submission.IDENTITY)
    assert "run all cells from top to bottom" in text and "bytes, at most 10" in text


@pytest.mark.parametrize(("module", "message"), [("pytest", "outputs are not what its cells"), ("nbconvert", "")])
def test_stale_outputs_and_a_failed_page(project, module, message):
    root, failing = project
    failing.add(module)
    with pytest.raises(settings.InputError, match=rf"(?s){message}.*{module} says why"):
        submission.write(root)
    assert not (root / "build/submission.zip").exists()


def test_an_archive_too_large(project, monkeypatch):
    root, _ = project
    monkeypatch.setattr(submission, "ARCHIVE_BYTES", 10)
    with pytest.raises(settings.InputError, match="would exceed 10 bytes"):
        submission.write(root)
    assert [path.name for path in (root / "build").iterdir()] == ["main.html"]


def test_the_page_keeps_alternative_texts_and_serves_keyboard_and_phone(tmp_path):
    metadata = {"image/png": {"alt": "a street"}}
    image = new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata=metadata)
    path = tmp_path / "main.ipynb"
    path.write_text(nbformat.writes(new_notebook(cells=[new_code_cell("1", outputs=[image])])))
    assert submission._run("nbconvert", *submission.PAGE, "--output-dir", str(tmp_path), str(path)) == ""
    page = (tmp_path / "main.html").read_text(encoding="utf-8")
    assert 'alt="a street"' in page and "tabIndex = 0" in page and "overflow-x: auto" in page


def test_commands_run_as_modules_of_this_python(monkeypatch):
    assert submission._run("json.tool", "--help") == ""
    assert "no-such-module" in submission._run("no-such-module")


def test_the_committed_notebook_waits_for_its_owner(capsys):
    assert main(["submission"]) == 1
    assert capsys.readouterr().err.count("is blank in the first cell") == 3

"""The notebooks' own lint: executed in order, thin, captioned, and free of what belongs to one machine."""

import ast
import copy
import json
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [PROJECT / "main.ipynb", *sorted((PROJECT / "notebooks").glob("*.ipynb"))]
IDENTITY = ("Student ID", "Full name", "Institutional e-mail")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|tmp|farm|mnt|Users)\b[^\s'\"]*")
FUNCTION_LINES = 5  # of a function's body
MAX_BYTES = 3_000_000


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(cell) -> ast.Module:
    """A code cell's syntax tree, with IPython's own commands turned into calls."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def has_image(cell) -> bool:
    return any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))


def alt_texts(cell) -> list[str]:
    """The alt text of each picture that a cell shows, "" where it has none."""
    return [
        output.get("metadata", {}).get(kind, {}).get("alt", "")
        for output in cell.outputs
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


def execution_problems(notebook) -> list[str]:
    """Not run top to bottom, or with errors, warnings or widgets among the outputs."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    problems = [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"cell {cell.execution_count} ended in {output.ename}")
            if output.get("name") == "stderr":
                problems.append(f"cell {cell.execution_count} wrote to stderr: {output.text[:80]}")
            if any("widget" in kind for kind in output.get("data", {})):
                problems.append(f"cell {cell.execution_count} shows a widget")
    if "widgets" in notebook.metadata:
        problems.append("the metadata hold widget state")
    return problems


def thinness_problems(notebook) -> list[str]:
    """Classes, or functions whose body is long: these belong into src."""
    problems = []
    for cell in code_cells(notebook):
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.ClassDef):
                problems.append(f"cell {cell.execution_count} defines the class {node.name}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.body[0].lineno + 1
                if lines > FUNCTION_LINES:
                    problems.append(f"cell {cell.execution_count}: {node.name} has {lines} lines")
    return problems


def figure_problems(notebook) -> list[str]:
    """Figures without a caption (a Markdown cell that starts with ``*Figure``), captions without a figure, pictures
    without alt text, and cells that do not end by showing their picture."""
    problems = []
    for cell, before in zip(notebook.cells[1:], notebook.cells, strict=False):
        if cell.source.startswith("*Figure") and (before.cell_type != "code" or not has_image(before)):
            problems.append(f"no figure stands above {cell.source[:10]}")
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type != "code" or not has_image(cell):
            continue
        if following is None or following.cell_type != "markdown" or not following.source.startswith("*Figure"):
            problems.append(f"cell {cell.execution_count}: no caption follows its figure")
        if not re.match(r"plots\.show(_file)?\(", ast.unparse(tree(cell).body[-1])):
            problems.append(f"cell {cell.execution_count}: its plot does not end with plots.show()")
        if any(not alt for alt in alt_texts(cell)):
            problems.append(f"cell {cell.execution_count}: a picture has no alt text")
    return problems


def layout_problems(notebook, identity: bool) -> list[str]:
    """Title, identity fields (main.ipynb alone), and the two cells that every notebook has."""
    first = notebook.cells[0]
    problems = []
    if first.cell_type != "markdown" or not re.match(r"# \S", first.source):
        problems.append("the first cell is no title")
    if identity:
        problems += [f"the first cell has no field {field!r}" for field in IDENTITY if field not in first.source]
    for tag in ("setup", "parameters"):
        found = tagged(notebook, tag)
        if len(found) != 1 or found[0].cell_type != "code":
            problems.append(f"{len(found)} cells are tagged {tag!r}: expected one code cell")
    return problems


def path_problems(notebook) -> list[str]:
    """Paths of one machine in sources, text outputs or metadata (images aside)."""
    bare = copy.deepcopy(notebook)
    for cell in code_cells(bare):
        for output in cell.outputs:
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output["data"][kind]
    strings, values = [], [bare]
    while values:
        value = values.pop()
        if isinstance(value, str):
            strings.append(value)
        elif isinstance(value, dict | list):
            values.extend(value.values() if isinstance(value, dict) else value)
    return [f"names the path {match[0]}" for text in strings for match in MACHINE_PATH.finditer(text)]


def problems(notebook, identity: bool = False) -> list[str]:
    """All that the lint finds in one notebook."""
    checks = (execution_problems, thinness_problems, figure_problems, path_problems)
    return [line for check in checks for line in check(notebook)] + layout_problems(notebook, identity)


# --------------------------------------------------------------------------------------- the notebooks
def read(path: Path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert (PROJECT / "main.ipynb").is_file()
    assert len(NOTEBOOKS) > 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    assert path.stat().st_size <= MAX_BYTES
    notebook = read(path)
    nbformat.validate(notebook)
    assert problems(notebook, identity=path.name == "main.ipynb") == []


def test_set_up_cell_is_the_same_everywhere():
    assert len({tagged(read(path), "setup")[0].source for path in NOTEBOOKS}) == 1


# -------------------------------------------------------------------------------------------- the lint
def sample():
    """A notebook without a fault."""
    image = new_output("display_data", {"image/png": "/tmp/abc+/mnt/==", "text/plain": "<Figure size 9x3>"})
    image.metadata = {"image/png": {"alt": "a line"}}
    cells = [
        new_markdown_cell("# Title\n\nStudent ID: · Full name: · Institutional e-mail:"),
        new_code_cell("%matplotlib inline\nimport os", metadata={"tags": ["setup"]}),
        new_code_cell("PROFILE = 'mini'", metadata={"tags": ["parameters"]}),
        new_code_cell(
            "def f(x):\n" + "    x += 1\n" * 4 + "    return x\n", outputs=[new_output("stream", text="a/tmp")]
        ),
        new_code_cell("figure = draw()\nplots.show(figure, alt='a line')", outputs=[image]),
        new_markdown_cell("*Figure 1. A line.*"),
        new_code_cell("plots.show_file('curves.png', alt='curves')", outputs=[image]),
        new_markdown_cell("*Figure 2. A picture.*"),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    return new_notebook(cells=cells)


def test_a_faultless_notebook_passes():
    assert problems(sample(), identity=True) == []


def output(**fields):
    return nbformat.from_dict({"output_type": "stream", "name": "stdout", "text": ""} | fields)


WIDGET = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}, "metadata": {}}
FAULTS = {
    "execution counts are [None, 2": lambda n: n.cells[1].update(execution_count=None),
    "execution counts are [1, 3": lambda n: n.cells[2].update(execution_count=3),
    "cell 2 ended in ValueError": lambda n: n.cells[2].outputs.append(output(output_type="error", ename="ValueError")),
    "cell 2 wrote to stderr": lambda n: n.cells[2].outputs.append(output(name="stderr")),
    "cell 2 shows a widget": lambda n: n.cells[2].outputs.append(output(**WIDGET)),
    "widget state": lambda n: n.metadata.update(widgets={}),
    "defines the class A": lambda n: n.cells[3].update(source="if 1:\n    class A: pass"),
    "f has 6 lines": lambda n: n.cells[3].update(source="def f():\n" + "    1\n" * 6),
    "no caption follows": lambda n: n.cells[5].update(source="A line."),
    "cell 5: no caption follows": lambda n: n.cells.pop(),
    "no figure stands above *Figure": lambda n: n.cells[4].update(outputs=[]),
    "does not end with plots.show()": lambda n: n.cells[4].update(source="plots.show(figure)\ndraw()"),
    "a picture has no alt text": lambda n: n.cells[4].outputs[0].update(metadata={}),
    "the first cell is no title": lambda n: n.cells[0].update(source="## Student ID Full name Institutional e-mail"),
    "no field 'Full name'": lambda n: n.cells[0].update(source="# Title"),
    "0 cells are tagged 'setup'": lambda n: n.cells[1].metadata.update(tags=[]),
    "2 cells are tagged 'parameters'": lambda n: n.cells[1].metadata.update(tags=["setup", "parameters"]),
    "names the path /home/data": lambda n: n.cells[2].update(source="DATA = '/home/data'"),
    "names the path /home/me/a.py": lambda n: n.cells[2].outputs.append(output(text="read /home/me/a.py")),
    "names the path /tmp": lambda n: n.metadata.update(kernel={"path": ["/tmp"]}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_lint_finds(fault):
    notebook = sample()
    FAULTS[fault](notebook)
    found = problems(notebook, identity=True)
    assert any(fault in line for line in found), found
    json.dumps(notebook)

"""The layout, asserted on the source: systems apart, imports downwards, one reader of the environment."""

import ast
import importlib
import io
import tokenize
from pathlib import Path

import pytest

from src.__main__ import SYSTEMS

SRC = Path(__file__).resolve().parents[1] / "src"
SHARED = {
    "settings",
    "config",
    "lazy",
    "images",
    "labelled",
    "backbones",
    "training",
    "checkpoints",
    "files",
    "metrics",
    "plots",
    "records",
    "system",
    "synthetic",
}
TOOLS = {"ablations", "experiments", "submission", "__main__"}
PUBLIC = {"Config", "REAL", "FOLDERS", "ADJUSTABLE"}  # of a system's package, before torch is loaded
ON_FIRST_USE = {
    "datasets",
    "build_model",
    "train",
    "evaluate",
    "evaluated",
    "predict",
    "draw",
    "write_mini",
    "distribution",
    "PROTOCOL",
}
MODULE_LINES, SRC_TOKENS = 420, 125_000
FILES = sorted(SRC.rglob("*.py"))
TREES = {file.relative_to(SRC).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def place(name: str) -> str:
    """First part of a module's path: ``road/data.py`` -> ``road``, ``plots.py`` -> ``plots``."""
    return name.split("/")[0].removesuffix(".py")


def imports(tree: ast.Module, name: str) -> set[str]:
    """The places (shared modules, systems, tools) that a module of src imports, its own left out."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = ["src", *name.split("/")[:-1]]
            base = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names += [f"{module}.{alias.name}" for alias in node.names]
    places = {module.split(".")[1] for module in names if module.startswith("src.")}
    return places - {place(name)}


def misplaced(tree: ast.Module, name: str) -> set[str]:
    """What a module imports although it stands above or beside it."""
    own = place(name)
    allowed = SHARED | set(SYSTEMS) | TOOLS if own in TOOLS else SHARED
    return imports(tree, name) - allowed


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("road/data.py", "from src import settings\nfrom src.road import model\nimport src.metrics", set()),
        ("road/data.py", "from src.sets import data", {"sets"}),
        ("road/data.py", "from src import plots, defects", {"defects"}),
        ("road/data.py", "def f():\n    import src.ablations", {"ablations"}),
        ("road/data.py", "from ..series.data import x\nfrom . import model", {"series"}),
        ("road/data.py", "from .. import series, settings", {"series"}),
        ("training.py", "from src.road import data", {"road"}),
        ("records.py", "from . import __main__", {"__main__"}),
        ("ablations.py", "from src import road, plots", set()),
    ],
)
def test_the_checker_sees_every_form_of_import(name, code, expected):
    assert misplaced(ast.parse(code), name) == expected


@pytest.mark.parametrize("name", TREES)
def test_imports_point_down_only(name):
    assert misplaced(TREES[name], name) == set()


def test_every_module_has_its_place():
    assert {place(name) for name in TREES} - {"__init__"} <= SHARED | set(SYSTEMS) | TOOLS
    assert {place(name) for name in TREES} >= SHARED | set(SYSTEMS)
    assert imports(TREES["__init__.py"], "__init__.py") == set()


@pytest.mark.parametrize("name", [name for name in TREES if place(name) not in TOOLS and name != "lazy.py"])
def test_modules_are_imported_by_statements(name):
    text = ast.unparse(TREES[name])
    assert "import_module" not in text and "__import__" not in text


@pytest.mark.parametrize("name", [name for name in TREES if name != "settings.py"])
def test_only_settings_reads_the_environment(name):
    text = ast.unparse(TREES[name])
    assert "getenv" not in text and "import environ" not in text
    uses = text.count("environ")
    allowed = text.count("'RANK' in os.environ") if name == "training.py" else 0  # set by torchrun
    assert uses == allowed


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_has_the_same_public_functions(name):
    package = importlib.import_module(f"src.{name}")
    assert vars(package).keys() >= PUBLIC
    assert all(hasattr(package, function) for function in ON_FIRST_USE)
    assert all(callable(getattr(package.Config, profile)) for profile in ("mini", "real", "full"))
    modules = {path.stem for path in (SRC / name).glob("*.py")}
    assert modules >= {"config", "data", "model", "fitting", "evaluation", "figures"}
    assert not modules & ON_FIRST_USE  # a function that shares its module's name hides it


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes and methods without a docstring.

    Private are names with a leading underscore and what is inside a function. Exempt are functions of a single
    statement: their name and annotations are to say it all; and methods that say what their class's base says.
    """
    found, scopes = [], [tree]
    while scopes:
        scope = scopes.pop()
        derived = isinstance(scope, ast.ClassDef) and scope.bases
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                scopes.append(node)
            if ast.get_docstring(node) or (isinstance(node, ast.FunctionDef) and (len(node.body) == 1 or derived)):
                continue
            found.append(f"{node.name} (line {node.lineno})")
    return found


def test_the_docstring_checker_sees_what_is_missing():
    method = "class A:\n    def b(self):\n        x = 1\n        return x\n"
    code = method + "def c():\n    return 1\ndef _d():\n    x = 1\n    y"
    assert undocumented(ast.parse(code)) == ["A (line 1)", "b (line 2)"]


@pytest.mark.parametrize("name", TREES)
def test_what_is_public_has_a_docstring(name):
    assert ast.get_docstring(TREES[name]), "the module has none"
    assert undocumented(TREES[name]) == []


def tokens(text: str) -> int:
    """Names, numbers, operators and strings: what there is to read, however it is broken into lines.

    An f-string counts once, as before Python 3.12, which tells its parts apart.
    """
    kinds = (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING)
    start, end = (getattr(tokenize, name, None) for name in ("FSTRING_START", "FSTRING_END"))
    count = depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        count += depth == 0 and token.type in (*kinds, start)
        depth += (token.type == start) - (token.type == end)
    return count


def test_an_f_string_is_one_token_with_every_python():
    assert tokens('x = f"{a + b} {c!r}"\n') == 3


def test_modules_and_the_whole_stay_small():
    texts = {name: (SRC / name).read_text(encoding="utf-8") for name in TREES}
    lines = {name: text.count("\n") for name, text in texts.items()}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}
    assert sum(map(tokens, texts.values())) <= SRC_TOKENS
    assert [name for name, text in texts.items() if "fmt: skip" in text or "fmt: off" in text] == []

"""The house rules that can be read from the source: direction of imports, sizes, names."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import dtwin_jax

PACKAGE = Path(dtwin_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Room -> rooms that it may import from, besides itself.
MAY_IMPORT = {
    "core": set(),
    "dynamics": {"core"},
    "models": {"core", "dynamics"},
    "outcomes": {"core"},
    "neural": {"core"},
    "inference": {"core"},
    "io": {"core"},
    "plot": {"core"},
    "twin": {"core", "dynamics", "outcomes", "neural", "inference"},
    "jobs": {"core", "dynamics", "outcomes", "neural", "inference", "twin", "io"},
    "report": {"core", "dynamics", "outcomes", "neural", "inference", "twin", "io", "plot"},
}
# These see everything: the public names and the command line.
TOP = {"__init__", "cli"}

EXTRAS = (
    r"pyarrow|pandas|pint|ucumvert|xarray|h5netcdf|h5py|arviz\w*|matplotlib|plotly|jinja2|typer|rich|pydantic"
    r"|duckdb|fhir|libsbml|sbmltoodejax|cuthbert\w*|sklearn|sksurv|dask\w*|distributed|orbax|jupytext"
)
# Rooms that only the command loads, and the extras that their modules are made of.
AT_THE_TOP = {"cli": {"typer"}, "jobs": {"pydantic"}}
BANNED_WORDS = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "handler"}

by_path = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def targets(node, path):
    """Full names that an import statement reads, submodules told from their contents where they are ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    origin = node.module or ""
    if node.level:
        folder = path.parent.relative_to(PACKAGE.parent).parts
        origin = ".".join([*folder[: len(folder) - node.level + 1], *([origin] if origin else [])])
    full = [f"{origin}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else origin for name in full]


def imports(path, *, lazy=True):
    """Names of all modules that a file imports; without `lazy`, only those imported when it is."""
    nodes = ast.walk(ast.parse(path.read_text())) if lazy else at_import(ast.parse(path.read_text()))
    found = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for node in found for name in targets(node, path)}


def at_import(node):
    """The nodes that run when a module is imported: function bodies and `if TYPE_CHECKING` are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def own(names):
    return {name for name in names if name.split(".")[0] == "dtwin_jax"}


def functions(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


@by_path
def test_imports_go_one_way(path):
    here = room(module_name(path))
    if here in TOP:
        return
    assert here in MAY_IMPORT, f"{here} is a new room: say in MAY_IMPORT what it may import"
    wrong = {name for name in own(imports(path)) if room(name) not in MAY_IMPORT[here] | {here}}
    assert not wrong, f"{here} may import {sorted(MAY_IMPORT[here])}, not {sorted(wrong)}"


def test_imports_have_no_cycle():
    graph = {module: own(imports(path)) - {module} for module, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(MODULES) <= set(order)


@by_path
def test_extras_are_imported_where_they_are_used(path):
    allowed = AT_THE_TOP.get(room(module_name(path)), set())
    found = {name.split(".")[0] for name in imports(path, lazy=False)}
    extras = sorted(name for name in found - allowed if re.fullmatch(EXTRAS, name))
    assert not extras, f"import {extras} inside the functions that need them"


@by_path
def test_files_have_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@by_path
def test_function_bodies_have_at_most_60_lines(path):
    for function in functions(path):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        assert length <= 60, f"{function.name} has {length} lines"


@by_path
def test_names_say_what_things_are(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)} | {
        path.stem
    }
    for name in names:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_").split("_")
        assert not BANNED_WORDS & set(words), f"{name} names nothing"
        assert words[0] != "process" and words != ["base"], f"{name} names nothing"

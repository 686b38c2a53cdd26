"""The notebooks run as a reader would run them, with short settings, and their own assertions hold."""

import base64
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Pictures that a reader of each must see, at least.
PICTURES = {
    "01_fit_by_gradient": 6,
    "02_neural_residual": 6,
    "03_sde_and_filter": 7,
    "04_live_twin": 5,
}
PNG = b"\x89PNG\r\n\x1a\n"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_every_notebook_is_here_and_has_its_script():
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in FOLDER.glob("*.py")} == set(PICTURES)


@each
def test_notebook_and_script_say_the_same(path):
    script = jupytext.read(path.with_suffix(".py"))
    assert cells(script) == cells(nbformat.read(path, as_version=4)), "run: jupytext --sync notebooks/*.py"


@each
def test_script_holds_all_that_the_notebook_does(path):
    notebook = nbformat.read(path, as_version=4)
    assert cells(jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent")) == cells(
        notebook
    )


@each
def test_pictures_are_there_for_a_reader_who_runs_nothing(path):
    assert path.stat().st_size < 1_000_000, "pictures of lower resolution will do"
    outputs = outputs_of(nbformat.read(path, as_version=4))
    assert len(pictures(outputs)) >= PICTURES[path.stem], "run: make notebooks"
    assert not [out for out in outputs if out.output_type == "error"]
    assert str(FOLDER.parent) not in path.read_text(encoding="utf-8")


def outputs_of(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def pictures(outputs):
    shown = [base64.b64decode(out.data["image/png"]) for out in outputs if "image/png" in out.get("data", {})]
    assert all(image.startswith(PNG) for image in shown)
    return shown


def executed(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    return NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()


@each
def test_notebook_runs_without_a_warning_and_shows_its_pictures(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DTWIN_SHORT", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # Bars that need ipywidgets fall back to text.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    outputs = outputs_of(executed(path, tmp_path))
    said = "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stderr")
    assert "Warning" not in said, said
    assert len(pictures(outputs)) >= PICTURES[path.stem]

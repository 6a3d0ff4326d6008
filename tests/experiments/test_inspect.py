"""The command and the notebook, as a user starts them."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import inspect
from tests.commands import REPOSITORY
from tests.vla_jax.recordings.recorded_episodes import write_data_set
from tests.vla_jax.reporting.test_inspection import write_tokenizer
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.preparation import prepare

NOTEBOOK = REPOSITORY / "experiments" / "inspect.ipynb"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspect")
    write_data_set(root / "lab", 3, seconds=1.0)
    return prepare([str(root / "lab")], root / "data", PrepareOptions()).dataset.path


def run(*argv):
    with pytest.raises(SystemExit) as exit_:
        inspect.COMMAND.run([str(a) for a in argv])
    return exit_.value.code


def test_prints_tables_and_writes_a_page(data, tmp_path, capsys):
    write_tokenizer(tmp_path)
    page = tmp_path / "report.html"
    options = ["--episode", "episode_000", "episode_002", "--samples", 2, "--tokenizer", tmp_path]
    assert run(data, *options, "--out", page) == 0
    printed = capsys.readouterr().out
    for expected in ("newest sensor row", "episode_002", "ins·", "before and after normalisation", str(page)):
        assert expected in printed
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_a_tokenizer_it_says_how_to_see_tokens(data, capsys):
    assert run(data) == 0
    assert "--tokenizer BACKBONE shows their tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episode", "nobody"], "no episode is named nobody"),
        (["--samples", 0], "--samples must be at least 1"),
        (["--out", "/absent/folder/report.html"], "there is no folder /absent/folder"),
        (["--tokenizer", "/absent"], "no such tokenizer"),
    ],
)
def test_mistakes_are_one_line(data, options, message, capsys):
    assert run(data, *options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_torch_stays_out_even_with_a_tokenizer(data, tmp_path):
    write_tokenizer(tmp_path)
    code = (
        "import sys\nfrom experiments import inspect\nfrom pathlib import Path\n"
        f"inspect.main(inspect.Arguments(Path({str(data)!r}), tokenizer=Path({str(tmp_path)!r})))\n"
        "assert 'tokenizers' in sys.modules\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def execute(folder: Path, monkeypatch, **variables):
    """Runs the notebook from top to bottom, as Jupyter does in its own folder; returns it with its outputs."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("TMPDIR", str(folder))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    for name in ("DATA", "TOKENIZER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=240, kernel_name="python3")
    # There lies a module named `inspect`, too, which must not take the place of Python's.
    return client.execute(cwd=str(NOTEBOOK.parent))


def outputs(notebook, kind):
    return [
        output["data"][kind]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def test_the_notebook_runs_on_the_phantom(tmp_path, monkeypatch):
    notebook = execute(tmp_path, monkeypatch)
    assert len(outputs(notebook, "image/svg+xml")) == 3
    tables = " ".join(outputs(notebook, "text/html"))
    for expected in ("Insert the needle", "newest sensor row", "A-scan", "sensor (1)"):
        assert expected in tables


@pytest.mark.slow
def test_the_notebook_runs_on_a_given_data_set(data, tmp_path, monkeypatch):
    write_tokenizer(tmp_path)
    notebook = execute(tmp_path, monkeypatch, DATA=data, TOKENIZER=tmp_path)
    assert "ins·" in " ".join(outputs(notebook, "text/html"))


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(
        not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell
    )

"""The notebook of the docs does on a real member what it says, as a reader runs it; and shows what it should."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/from-a-model-to-a-live-stream.ipynb"


@pytest.fixture
def kernel(environment, tmp_path, monkeypatch):
    """Runs a notebook in a folder of its own."""
    for name in ("GRIDSCORE_MEMBERS", "GRIDSCORE_CLUSTER_NAME"):
        monkeypatch.setenv(name, environment[name])
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    def go(notebook):
        where = {"metadata": {"path": str(tmp_path)}}
        return NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()

    return go


def outputs(cell):
    return [(each.get("data") or {}).get("text/html") or each.get("text", "") for each in cell.outputs]


def test_the_notebook_of_the_docs_goes_from_a_model_to_a_live_stream(kernel, unique):
    # The README has a model of the same name, and its test may have pushed it to the same cluster.
    notebook = nbformat.reads(NOTEBOOK.read_text().replace("tumours", unique), as_version=4)
    cells = [cell for cell in kernel(notebook).cells if cell.cell_type == "code"]
    shown = {cell.source.splitlines()[-1]: outputs(cell) for cell in cells}
    bar, version = shown[f'client.push_model(model, "{unique}", alias="champion")']
    assert "value='100'" in bar
    assert f"<td>{unique}</td><td>1</td>" in version
    assert f"<td>{unique}</td><td>WAITING</td>" in shown[f'client.submit("{unique}.yaml")'][0]
    assert "<td>one more</td>" in shown["result"][-1]
    assert "champion" in "".join(shown["%gridscore model list"])

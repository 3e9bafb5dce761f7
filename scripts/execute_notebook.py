"""Execute docs/example.ipynb in place: `make notebook`. What libraries say beside the results, and times, are left out."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "example.ipynb"


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells; keep the results, of those with a table only the table."""
    NotebookClient(notebook, timeout=1800, record_timing=False, coalesce_streams=True).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text/html" in output.get("data", {}):
                    del output.data["text/plain"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    nbformat.write(executed(nbformat.read(NOTEBOOK, 4)), NOTEBOOK)

"""What a run keeps of its residuals: all that a page draws, so that nothing but PaCMAP takes the model again."""

import json
from pathlib import Path

import pytest

from iconoclast.runs.documents import Geometry
from tests.support.entry_point import QUICK, iconoclast, write_prompts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("geometry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_prompts(folder)
        assert iconoclast("run", tiny_folder, *QUICK, "--out", "run").code == 0
    return folder / "run"


def test_a_fresh_run_is_drawn_without_its_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Geometry.read(run / "geometry.json")
    assert kept.pca is not None and kept.pacmap is None
    assert len(kept.points) == len(kept.pca) == len(kept.prompts)
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("iconoclast.runs.workbench.load_model", None)
    assert iconoclast("plot", run).code == 0 and iconoclast("report", run).code == 0
    assert '"pca"' in (run / "report.html").read_text() and '"pca"' in (run / "plots" / "residuals.html").read_text()


def test_plot_measures_what_an_earlier_run_has_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run / "geometry.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in before.items() if name != "pca"}))
    monkeypatch.chdir(run.parent)
    assert iconoclast("plot", run).code == 0
    assert json.loads(file.read_text()) == before


def test_pacmap_is_asked_for_where_it_can_be_had(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iconoclast.directions.neighbors.find_spec", lambda name: None)
    for command in ("report", "plot"):
        assert "pip install 'iconoclast-edit[research]'" in iconoclast(command, run, "--pacmap").complaint

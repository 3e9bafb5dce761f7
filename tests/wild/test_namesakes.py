"""Other projects on PyPI have our names: a plug-in of MkDocs is called iconoclast, the original's release iconoclast-llm."""

from pathlib import Path

import pytest

from iconoclast.cli.app import name_namesakes


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [("iconoclast", "0.1.0", False), ("iconoclast", "1.0.1", True), ("iconoclast-llm", "0.2.1", True)],
)
def test_another_project_of_the_same_name_is_told(
    name: str,
    version: str,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metadata = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name_namesakes()
    assert (f"{name} {version} is installed here too" in " ".join(capsys.readouterr().err.split())) == said

"""The project itself: documents that cannot drift, and extras that exist."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from iconoclast.prompts import PromptSet
from iconoclast.reports.settings_text import settings_reference
from iconoclast.runs.documents import schemas
from iconoclast.version import __version__

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def test_the_settings_document_is_the_settings() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_reference(), (
        "run: iconoclast config reference > docs/settings.md"
    )


def test_the_published_schemas_are_those_of_the_documents() -> None:
    published = {file.name: file.read_text() for file in (ROOT / "docs" / "schemas").iterdir()}
    assert published == schemas(), "run: iconoclast config schemas docs/schemas"


def test_the_specification_names_modules_and_tests_that_exist() -> None:
    for name in re.findall(r"`((?:tests|configs)/[\w./-]+)`", (ROOT / "docs" / "specification.md").read_text()):
        assert (ROOT / name).exists(), name
    for row in (ROOT / "docs" / "specification.md").read_text().splitlines():
        cells = row.split("|")
        if len(cells) > 4:
            for name in re.findall(r"`([\w/]+\.py|[\w]+/)`", cells[2]):
                assert (ROOT / "src" / "iconoclast" / name).exists(), name


def test_foreign_underscores_stand_in_one_module_per_library() -> None:
    """Decision 0009; a name is ours if this package binds it anywhere."""
    package = ROOT / "src" / "iconoclast"
    trees = {file.relative_to(package).as_posix(): ast.parse(file.read_text()) for file in package.rglob("*.py")}
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    ours, used = set(), set()
    for name, node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                ours.add(node.name)
            case (
                ast.Name(id=bound, ctx=ast.Store()) | ast.Attribute(value=ast.Name("self"), attr=bound, ctx=ast.Store())
            ):
                ours.add(bound)
            case (
                ast.Attribute(attr=attribute)
                | ast.Call(
                    func=ast.Name("getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=attribute), *_]
                )
            ):
                used.add((name, attribute))
            case ast.ImportFrom(module=str() as module) if not module.startswith("iconoclast"):
                used |= {(name, part) for part in [*module.split("."), *(each.name for each in node.names)]}
    private = re.compile("_[a-z]")
    found = {name for name, attribute in used if private.match(str(attribute)) and attribute not in ours}
    assert found == {"models/packed.py", "models/transformers_internals.py", "search/optuna_internals.py"}


def test_extras_and_version_are_as_promised() -> None:
    assert {"research", "benchmark", "quantized", "cluster", "docs", "dev"} == set(PROJECT["optional-dependencies"])
    version = PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert version == "iconoclast.version.__version__" and re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert PROJECT["license"] == "AGPL-3.0-or-later"


def test_the_first_screen_says_what_shows_it_and_gives_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()[:30]
    title, sentence, *_ = "\n".join(lines).split("\n\n")
    assert title == "# ICONOCLAST" and sentence.startswith("ICONOCLAST is ")
    assert sentence.endswith(".") and ". " not in sentence.replace("\n", " ")
    (picture,) = re.findall(r"^!\[[^]]+\]\(([^)]+)\)$", "\n".join(lines), re.MULTILINE)
    assert (ROOT / picture).is_file()
    commands = [line.split("#")[0].strip() for line in lines]
    assert "make demo" in commands and "make test" in commands


@pytest.mark.parametrize("role", ["target", "benign"])
def test_built_in_splits_are_disjoint(role: str) -> None:
    splits = [PromptSet.load(f"builtin:everyday/{role}", split=name) for name in ("fit", "select", "report")]
    for i, first in enumerate(splits):
        assert first.overlap(first) == len(first)
        for second in splits[i + 1 :]:
            assert first.overlap(second) == 0


def test_no_prompt_of_others_stands_in_the_tree() -> None:
    """BENCHMARK_DATA is a folder of JSON lines with a `text` each: prompts of benchmarks, which must not be ours too."""
    if "BENCHMARK_DATA" not in os.environ:
        pytest.skip("BENCHMARK_DATA names no folder of prompts")
    ours = {
        prompt.text.casefold()
        for role in ("target", "benign")
        for prompt in PromptSet.load(f"builtin:everyday/{role}", split="all")
    }
    files = list(Path(os.environ["BENCHMARK_DATA"]).glob("*.jsonl"))
    assert files
    for file in files:
        theirs = {json.loads(line)["text"].casefold() for line in file.read_text(encoding="utf-8").splitlines()}
        assert not ours & theirs, file


def test_the_ground_floor_loads_no_tensors() -> None:
    """In a process of its own, which imports what the contract in pyproject.toml names, and every module below it."""
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    contract = next(c for c in contracts if c["type"] == "forbidden")
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in sys.argv[1].split():\n"
        "    module = importlib.import_module(name)\n"
        "    for _, below, _ in pkgutil.walk_packages(getattr(module, '__path__', []), f'{name}.'):\n"
        "        importlib.import_module(below)\n"
        "print(*(name for name in sys.argv[2].split() if name in sys.modules))\n"
    )
    rooms, libraries = " ".join(contract["source_modules"]), " ".join(contract["forbidden_modules"])
    command = [sys.executable, "-c", program, rooms, libraries]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize("used", ["iconoclast; iconoclast.load_model", "iconoclast.runs.starting"])
def test_nobody_waits_for_libraries_that_are_not_needed(used: str) -> None:
    """peft brings bitsandbytes, which takes a second and prints a line of its own."""
    program = f"import sys, {used}; print(*({{'peft', 'bitsandbytes', 'datasets'}} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [] and result.stderr == ""

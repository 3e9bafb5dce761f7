"""The documents: commands and flags that the program has, links that lead somewhere, pages that can be found."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import platformdirs
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from iconoclast.cli.flags import own_flag
from iconoclast.models.demo import demo_folder
from tests.support.commands import UsageError, document, flags, parsed

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
OUR_PAGES = [page for page in PAGES if page.parent.name != "benchmarks"]
"""Without the benchmarks, whose commands are those of the commits that they name."""


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def tokens(page: Path) -> list[Token]:
    found = MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text(encoding="utf-8"))
    return [each for token in found for each in (token, *(token.children or []))]


EAGER = "--help|--version|--install-completion|--show-completion"


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """All commands: the words after `iconoclast`, and whether they stand in a block of code and therefore whole."""
    for token in tokens(page):
        whole = token.type in ("fence", "code_block")
        if whole or token.type == "code_inline":
            for line in re.findall(
                rf"^iconoclast ((?!{EAGER})[a-z-].*)", token.content.replace("\\\n", ""), re.MULTILINE
            ):
                command = re.split(r" [>|] ", re.sub(r"\[(--\S+)]", r"\1", line))[0]
                yield shlex.split(command, comments=True), whole


def test_the_page_of_commands_is_the_program() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == document(), (
        "run: python -m tests.support.commands > docs/commands.md"
    )


@pytest.mark.parametrize("page", OUR_PAGES, ids=named)
def test_commands_in_the_documents_are_those_of_the_program(page: Path) -> None:
    for words, whole in commands(page):
        try:
            parsed(words)
        except UsageError as error:
            missing = type(error).__name__ == "MissingParameter"
            assert missing and not whole, f"iconoclast {shlex.join(words)}: {error}"


@pytest.mark.parametrize("page", OUR_PAGES, ids=named)
def test_flags_in_the_text_are_those_of_the_program(page: Path) -> None:
    ours = re.compile(r"(?=iconoclast |--)(?!.* -- )")
    text = [token.content for token in tokens(page) if token.type == "code_inline" and ours.match(token.content)]
    for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", " ".join(text)):
        assert own_flag(flag.replace(".", "-").replace("_", "-")) in flags(), flag


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    every = tokens(page)
    titles = [every[i + 1].content for i, token in enumerate(every) if token.type == "heading_open"]
    plain = (re.sub(r"\[([^]]+)]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for token in tokens(page):
        link = str(token.attrGet("href") or token.attrGet("src") or "")
        if link and not re.match(r"https?:|mailto:", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_order_of_pages() -> None:
    entries: list[str] = []
    for page in (ROOT / "docs" / "index.md", ROOT / "docs" / "decisions" / "README.md"):
        for tree in re.findall(r"^```\{toctree}\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE):
            entries += [named((page.parent / line).resolve()) for line in tree.split() if not line.startswith(":")]
    pages = {*map(named, PAGES), "docs/example.ipynb"} - {"docs/index.md"}
    assert {page for page in pages if not any(Path(page).with_suffix("").match(entry) for entry in entries)} == set()


NOTEBOOK = ROOT / "docs" / "example.ipynb"
CODE = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in the place of the demo; `make notebook` runs it with the demo model."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    shutil.copytree(tiny_folder, demo_folder())
    names: dict[str, object] = {}
    for cell in CODE:
        exec("".join(cell["source"]), names)


def test_the_notebook_was_executed_in_order_and_names_no_machine() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(cell["outputs"] for cell in CODE)
    assert not re.search(r"/(tmp|home|root|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))

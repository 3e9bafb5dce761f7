"""The report page in a real browser: figures are drawn, nothing complains, what a visitor does works, markup stays text.

Skipped where there is no Chromium.
"""

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from iconoclast.audit.document import AuditDocument
from iconoclast.reports.pages.of_audit import audit_page
from iconoclast.reports.pages.of_export import export_page
from iconoclast.reports.pages.of_run import RunPage
from iconoclast.reports.pages.responses import exchanges
from tests.reports.test_pages import MADE, MARKUP, audited_document, geometry, sample, token_view
from tests.support.browser import BROWSER, Visitor, browser, visited

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")

DRAWN = "[...document.querySelectorAll('figure')].map((f) => [f.dataset.figure, f.querySelectorAll('svg[role=img]').length])"
LAYER = "document.querySelector('#figure-residuals output').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that has kept everything."""
    run = Path(shutil.copytree(MADE / "run", tmp_path_factory.mktemp("browser") / "run"))
    opened = RunPage.open(run)
    token_view(opened.saved.trial.index, layers=12).write(run / "tokens.json")
    geometry(4).write(run / "geometry.json")
    said, _ = exchanges([sample("set an alarm", "I cannot", MARKUP), sample("play a song", MARKUP, "La la la")])
    file = run / "page.html"
    replace(opened.page(), exchanges=said).write(file)
    return file


@pytest.fixture(scope="module")
def devtools() -> Iterator[str]:
    with browser() as address:
        yield address


def visit(devtools: str, page: Path, width: int, act: Callable[[Visitor], Awaitable[None]], **preferences: str) -> None:
    """Open the page, do something, and see that it has asked for nothing and said nothing to the console."""

    async def visit() -> None:
        async with aiohttp.ClientSession() as session:
            visitor = await visited(devtools, session, width)
            await visitor.emulate(**preferences)
            await visitor.call("Page.navigate", url=page.as_uri())
            await visitor.until(
                "document.readyState === 'complete' && (document.querySelector('figure svg') || !document.querySelector('figure'))"
            )
            await act(visitor)
            assert visitor.console == [] and visitor.requests == [page.as_uri()]

    asyncio.run(visit())


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_everything_is_drawn_and_nothing_keeps_people_out(devtools: str, page: Path, width: int, scheme: str) -> None:
    async def act(visitor: Visitor) -> None:
        figures = dict(await visitor.run(DRAWN))
        assert {"counts", "front", "strengths", "layers", "residuals", "tokens"} <= set(figures)
        assert min(figures.values()) > 0
        html = await visitor.run("document.documentElement.outerHTML")
        assert not re.search(r"<svg(?:(?!</svg>).)*NaN", html, re.DOTALL) and html.count("<script") == 3
        assert MARKUP in await visitor.run("document.querySelector('#exchanges').textContent")
        assert not await visitor.run("document.querySelector('#exchanges b, #exchanges script')")
        assert not await visitor.run("document.documentElement.scrollWidth > innerWidth")
        await visitor.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        assert await visitor.faults() == []

    visit(devtools, page, width, act, color_scheme=scheme)


def test_an_export_keeps_nobody_out_either(devtools: str, tmp_path: Path) -> None:
    async def act(visitor: Visitor) -> None:
        assert await visitor.faults() == []

    export_page(MADE / "adapter").write(tmp_path / "page.html")
    visit(devtools, tmp_path / "page.html", 390, act)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_an_audit_fits(devtools: str, tmp_path: Path, width: int) -> None:
    async def act(visitor: Visitor) -> None:
        assert not await visitor.run("document.documentElement.scrollWidth > innerWidth")
        assert "1 of 1 shown" in await visitor.run("document.body.textContent")
        assert await visitor.faults() == []

    AuditDocument.model_validate(audited_document()).write(tmp_path / "audit.json")
    audit_page(tmp_path / "audit.json").write(tmp_path / "page.html")
    visit(devtools, tmp_path / "page.html", width, act)


def test_what_a_visitor_does(devtools: str, page: Path) -> None:
    async def act(visitor: Visitor) -> None:
        await visitor.point_at("document.querySelector('#figure-front .point path, #figure-front .point circle')")
        await visitor.until("/trial \\d/.test(document.querySelector('#figure-front [aria-label=tip]')?.textContent)")
        await visitor.run("document.querySelector('#filters [name=text]').focus()")
        await visitor.call("Input.insertText", text="ALARM")
        shown = "[...document.querySelectorAll('#exchanges article:not([hidden]) h3')].map((each) => each.textContent)"
        assert [said.split() for said in await visitor.run(shown)] == [["target", "set", "an", "alarm"]]
        for figure, value, word in [
            ("front", "broken", "Broken"),
            ("tokens", "1", "Edited"),
            ("residuals", "pacmap", "PaCMAP"),
        ]:
            chosen = f"document.querySelector('#figure-{figure} select')"
            await visitor.run(f"{chosen}.value = '{value}'; {chosen}.dispatchEvent(new Event('change'))")
            assert word in await visitor.run(f"document.querySelector('#figure-{figure} .drawing').textContent")

    visit(devtools, page, 1280, act)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_play_goes_through_the_layers_and_stops(devtools: str, page: Path, motion: str) -> None:
    async def act(visitor: Visitor) -> None:
        await visitor.run("window.places = new Set()")
        note = (
            "document.querySelector('#figure-residuals .drawing > svg circle, #figure-residuals .drawing > svg path')"
        )
        watch = f"new MutationObserver(() => places.add({note}?.closest('svg').innerHTML)).observe"
        await visitor.run(f"{watch}(document.querySelector('#figure-residuals .drawing'), {{ childList: true }})")
        assert await visitor.run(LAYER) == "2 of 3"
        await visitor.run("document.querySelector('#figure-residuals button').click()")
        await visitor.until(
            f"{LAYER} === '3 of 3' && document.querySelector('#figure-residuals button').textContent === 'Play'"
        )
        await visitor.run("document.querySelector('#figure-residuals button').click()")
        await visitor.until(
            f"{LAYER} === '3 of 3' && document.querySelector('#figure-residuals button').textContent === 'Play'"
        )
        places = await visitor.run("places.size")
        assert (places <= 5) == (motion == "reduce")

    visit(devtools, page, 1280, act, reduced_motion=motion)


def test_print_leaves_out_what_paper_cannot_do(devtools: str, page: Path) -> None:
    async def act(visitor: Visitor) -> None:
        await visitor.emulate("print")
        await visitor.run("dispatchEvent(new Event('beforeprint'))")
        assert not await visitor.run(
            "[...document.querySelectorAll('nav, button, select')].some((each) => each.offsetParent)"
        )
        assert "Layer 2 of 3" in await visitor.run("document.querySelector('#figure-residuals').innerText")
        assert "2 of 2 shown" in await visitor.run("document.querySelector('#responses').innerText")

    visit(devtools, page, 1280, act)

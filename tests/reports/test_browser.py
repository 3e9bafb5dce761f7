"""The report page in a real browser: the figures are drawn, nothing complains, filters filter, markup stays text.

Skipped where there is no Chromium.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path

import pytest

from iconoclast.audit.document import AuditDocument
from iconoclast.reports.pages.of_audit import audit_page
from iconoclast.reports.pages.of_run import RunPage
from iconoclast.reports.pages.responses import exchanges
from tests.reports.test_pages import MADE, MARKUP, audited_document, sample, token_view

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")

SEARCH = """
const search = document.querySelector("input[type=search]");
search.value = "ALARM"; search.dispatchEvent(new Event("input", { bubbles: true }));
const front = document.querySelector("#figure-front .drawing > svg"), point = front.querySelector(".point circle");
const { x, y, width, height } = point.getBoundingClientRect();
const at = { clientX: x + width / 2, clientY: y + height / 2, pointerType: "mouse", bubbles: true };
front.dispatchEvent(new PointerEvent("pointerenter", at)); front.dispatchEvent(new PointerEvent("pointermove", at));
const shown = [...document.querySelectorAll("#exchanges article")].filter((article) => !article.hidden);
const tokens = document.querySelector("#figure-tokens"), prompts = tokens.querySelector("select"), before = tokens.querySelector("svg");
prompts.value = 1; prompts.dispatchEvent(new Event("change"));
document.body.dataset.redrawn = before !== tokens.querySelector("svg") && tokens.querySelectorAll(".grids svg").length;
document.body.dataset.found = shown.map((article) => article.querySelector("h3").textContent.trim()).join("; ");
const { scrollWidth, clientWidth } = document.documentElement;
document.body.dataset.wide = scrollWidth > clientWidth;
"""
"""What a visitor does: searches, points at a trial, chooses another prompt of the token view."""


@dataclass(frozen=True)
class Visit:
    """A page as the browser has made it, and what the browser had to say."""

    dom: str
    console: list[str]


def visit(file: Path, html: str, *, width: int = 1280) -> Visit:
    file.write_text(html, encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={file.parent / 'profile'}",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--window-size={width},900"]
    command += ["--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Visit(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = Path(shutil.copytree(MADE / "run", tmp_path_factory.mktemp("browser") / "run"))
    token_view(RunPage.open(run).saved.trial.index, layers=12).write(run / "tokens.json")
    said, _ = exchanges([sample("set an alarm", "I cannot", MARKUP), sample("play a song", MARKUP, "La la la")])
    return replace(RunPage.open(run).page(), exchanges=said).html()


def test_the_page_draws_its_figures_and_nothing_complains(html: str, tmp_path: Path) -> None:
    seen = visit(tmp_path / "page.html", html)
    assert seen.console == []
    figures = re.findall(r'<figure id="figure-(\w+)".*?</figure>', seen.dom, re.DOTALL)
    assert {"counts", "front", "strengths", "layers", "tokens"} <= set(figures)
    for figure in re.findall(r"<figure .*?</figure>", seen.dom, re.DOTALL):
        assert re.search(r'<svg [^>]*role="img"', figure) and "NaN" not in figure
    assert seen.dom.count("<script") == 3
    assert MARKUP in unescape(seen.dom) and "<b>bold" not in seen.dom


@pytest.mark.parametrize("width", [400, 1280])
def test_search_and_pointing(html: str, tmp_path: Path, width: int) -> None:
    ours = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)  # it would stop the visitor's script
    seen = visit(tmp_path / "page.html", ours.replace("</body>", f"<script>{{{SEARCH}}}</script></body>"), width=width)
    assert seen.console == []
    assert 'data-found="target set an alarm"' in seen.dom
    assert 'data-wide="false"' in seen.dom and 'data-redrawn="2"' in seen.dom
    assert re.search(r'aria-label="tip"(?:(?!</svg>).)*trial \d', seen.dom, re.DOTALL)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_an_audit_fits(tmp_path: Path, width: int) -> None:
    file = tmp_path / "audit.json"
    AuditDocument.model_validate(audited_document()).write(file)
    measure = "<script>document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth</script></body>"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", audit_page(file).html())
    seen = visit(tmp_path / "page.html", html.replace("</body>", measure), width=width)
    assert seen.console == [] and 'data-wide="false"' in seen.dom
    assert "1 of 1 shown" in seen.dom

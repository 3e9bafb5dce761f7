"""The site of `make docs`: it builds without a complaint, and a visitor finds nothing broken. Skipped without its packages."""

import asyncio
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import pytest

from tests.support.browser import AXE, BROWSER, Visitor, browser, visited

ROOT = Path(__file__).parents[1]
SUBJECTS = (
    "docs/index",
    "README",
    "docs/concepts",
    "docs/commands",
    "docs/settings",
    "docs/library",
    "docs/example",
    "docs/audit",
    "docs/examples/audit",
)
"""One page of every kind."""

pytest.importorskip("furo")
pytest.importorskip("myst_nb")
pytestmark = pytest.mark.slow


def build(source: Path, to: Path, builder: str = "html") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-EWq", "--keep-going", "-b", builder, "-c", str(ROOT / "docs")]
    return subprocess.run([*command, str(source), str(to)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("site")
    built = build(ROOT, to)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return to


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    links = ["nowhere.md", "index.md#no-heading", "../nothing.py"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Title\n\n" + "\n".join(f"[link]({link})" for link in links))
    built = build(tmp_path, tmp_path / "site", "dummy")
    assert built.returncode == 1
    assert all(name in built.stderr for name in ("nowhere.md", "no-heading", "nothing.py")), built.stderr


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {file.relative_to(site).with_suffix("") for file in site.rglob("*.html")}
    sources = [
        file for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "docs/*.ipynb") for file in ROOT.glob(pattern)
    ]
    assert {file.relative_to(ROOT).with_suffix("") for file in sources} <= pages


def test_the_example_of_an_audit_leads_to_its_page(site: Path) -> None:
    said = (site / "docs" / "audit.html").read_text()
    assert '<a href="examples/audit.html">an example</a>' in said
    page = (site / "docs" / "examples" / "audit.html").read_text()
    assert "what was changed" in page


async def faults(visitor: Visitor, page: str) -> list[str]:
    """Open a page and return what is wrong with it."""
    await visitor.call("Page.navigate", url=page)
    await visitor.until(f"document.readyState === 'complete' && location.href === {json.dumps(page)}")
    wide = await visitor.run("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return ["is wider than the window"] * bool(wide) + (await visitor.faults() if AXE.exists() else [])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_visitor_finds_nothing_broken(address: str, width: int, scheme: str) -> None:
    """The console is clean, no request leaves, nothing is wider than the window, the search finds, axe has no serious fault."""

    async def look(devtools: str) -> dict[str, list[str]]:
        async with aiohttp.ClientSession() as session:
            visitor = await visited(devtools, session, width)
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            await visitor.call("Emulation.setEmulatedMedia", features=media)
            await visitor.call("Page.navigate", url=address)
            await visitor.until("location.pathname === '/docs/index.html'")
            found = {page: await faults(visitor, f"{address}/{page}.html") for page in SUBJECTS}
            await visitor.call("Page.navigate", url=f"{address}/search.html?q=adapter")
            await visitor.until("document.querySelectorAll('#search-results li').length > 3")
            elsewhere = [url for url in visitor.requests if not url.startswith((address, "data:"))]
            return {**found, "console": visitor.console, "requests": elsewhere}

    with browser() as devtools:
        found = asyncio.run(look(devtools))
    assert not any(found.values()), found

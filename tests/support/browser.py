"""A headless Chromium that is told what to do, as a visitor would: its console, its requests, what axe-core finds."""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(sys.prefix, "node_modules", "axe-core", "axe.min.js")
"""What finds faults that keep people out of a page; `make setup` installs it where there is npm."""

ADDRESS = re.compile(r"DevTools listening on (ws://\S+)")


class Navigated(Exception):
    """The page was left while it was asked something."""


class Visitor:
    """One page in the browser.

    Attributes:
        console: messages and errors of the page.
        requests: addresses that the page asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number, self._session = socket, 0, ""
        self.console: list[str] = []
        self.requests: list[str] = []

    async def begin(self, width: int) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters}
        await self._socket.send_json({**call, "sessionId": self._session} if self._session else call)
        while True:
            told = await self._socket.receive_json(timeout=60)
            if told.get("id") == self._number:
                if "navigated" in told.get("error", {}).get("message", ""):
                    raise Navigated
                assert "error" not in told, told
                return dict(told["result"])
            self._note(told.get("method"), told.get("params", {}))

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(told))

    async def run(self, script: str) -> Any:
        """Return the value of a script in the page, awaited if it is a promise."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, condition: str, seconds: float = 60) -> None:
        """Wait until a condition of the page is true."""
        end = time.monotonic() + seconds
        while not await self._holds(condition):
            assert time.monotonic() < end, f"never: {condition}; {self.console}"
            await asyncio.sleep(0.05)

    async def point_at(self, element: str) -> None:
        """Bring an element, given as an expression, into view and move the mouse to its middle."""
        script = "(({ x, y, width, height }) => [x + width / 2, y + height / 2])(at.getBoundingClientRect())"
        x, y = await self.run(
            f"{{ const at = {element}; at.scrollIntoView({{ block: 'center', behavior: 'instant' }}); {script} }}"
        )
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def emulate(self, media: str = "", **features: str) -> None:
        """Pretend a medium, such as print, and what the visitor prefers, such as color_scheme="dark"."""
        told = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", media=media, features=told)

    async def _holds(self, condition: str) -> bool:
        try:
            return bool(await self.run(f"Boolean({condition})"))
        except Navigated:
            return False

    async def faults(self) -> list[str]:
        """Return the serious faults that axe finds in the page, each with the first elements that have it; none without axe."""
        if not AXE.exists():
            return []
        await self.run(f"{AXE.read_text(encoding='utf-8')};0")
        found = await self.run("axe.run({ preload: false }).then((result) => JSON.stringify(result.violations))")
        grave = [each for each in json.loads(found) if each["impact"] in ("serious", "critical")]
        return [f"{each['id']}: {[node['html'][:120] for node in each['nodes'][:3]]}" for each in grave]

    async def picture(self, file: Path) -> None:
        """Write a picture of the page."""
        file.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@contextmanager
def browser() -> Iterator[str]:
    """Start a browser that knows no machine but this one; yield the address at which it is told what to do."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": profile})
        assert process.stderr is not None
        try:
            yield next(found[1] for line in process.stderr if (found := ADDRESS.search(line)))
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


async def visited(address: str, session: aiohttp.ClientSession, width: int) -> Visitor:
    """Open an empty page of a width."""
    visitor = Visitor(await session.ws_connect(address, max_msg_size=0))
    await visitor.begin(width)
    return visitor

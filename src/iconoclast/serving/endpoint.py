"""The endpoint: one model in memory, asked by one request at a time; the edit is changed between two of them."""

import asyncio
import ipaddress
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from markupsafe import Markup

from iconoclast.errors import IconoclastError, UserError, first_line
from iconoclast.models.sampling import Piece, respond
from iconoclast.reports.pages.page import TEMPLATES, asset
from iconoclast.runs.conversation import encoded
from iconoclast.runs.voices import UnknownVoice, Voices, require_name
from iconoclast.serving import protocol
from iconoclast.serving.protocol import Answer, ChatRequest, RequestError

LARGEST = 2**24
"""Bytes of a request."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Endpoint:
    """An endpoint in OpenAI's protocol for the models that can be asked by name.

    Args:
        host: address that it will listen on. At an address of this machine only, requests under another name are
            refused: a page from elsewhere could send them.
    """

    def __init__(self, voices: Voices, host: str = "127.0.0.1") -> None:
        self._voices = voices
        self._hosts = (*LOCAL_NAMES, host) if is_local(host) else None
        self._model = asyncio.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._created = int(time.time())

    def application(self) -> web.Application:
        """Return the web application."""
        app = web.Application(middlewares=[self._tell_errors, self._check_host], client_max_size=LARGEST)
        app.router.add_get("/", self._page)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._one_model)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    @web.middleware
    async def _tell_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refused(error.status, f"{request.method} {request.path}: {error.reason}.")
        except UnknownVoice as error:
            return _refused(404, str(error), "model", "model_not_found")
        except IconoclastError as error:
            return _refused(400, str(error), getattr(error, "param", None))
        except RuntimeError as error:  # out of memory, for instance
            return _refused(500, first_line(error)[:300])

    @web.middleware
    async def _check_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._hosts is not None and request.url.host not in self._hosts:
            return _refused(403, f"This endpoint is for this machine only, and not for {request.url.host}.")
        return await handler(request)

    async def _page(self, http: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        text = (files("iconoclast.serving") / "page.html").read_text(encoding="utf-8")
        page = TEMPLATES.from_string(text).render(
            nonce=nonce, edited=self._voices.edited, shared=Markup(asset("shared.css"))
        )
        policy = f"default-src 'none'; connect-src 'self'; img-src data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _models(self, http: web.Request) -> web.Response:
        return web.json_response(protocol.model_list(self._voices.names, self._created))

    async def _one_model(self, http: web.Request) -> web.Response:
        name = http.match_info["model"]
        require_name(name, self._voices.names)
        return web.json_response(protocol.model(name, self._created))

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        if http.content_type != "application/json":  # other types can be sent by any page without being asked
            raise RequestError("Send JSON, with the header Content-Type: application/json.")
        request = ChatRequest.read(await http.read())
        async with self._answering(request) as (answer, pieces):
            if not request.stream:
                return web.json_response(answer.whole([piece async for piece in pieces]))
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(http)
            await self._stream(answer, pieces, response)
            return response

    async def _stream(self, answer: Answer, pieces: AsyncIterator[Piece], response: web.StreamResponse) -> None:
        try:
            await response.write(answer.opening().encode())
            async for piece in pieces:
                await response.write(answer.chunk(piece).encode())
            await response.write(answer.closing().encode())
        except ConnectionResetError:  # the client has gone
            return
        except (IconoclastError, RuntimeError) as error:  # too late for a status
            await response.write(protocol.event(protocol.error(first_line(error)[:300], 500)).encode())
        await response.write_eof()

    @asynccontextmanager
    async def _answering(self, request: ChatRequest) -> AsyncIterator[tuple[Answer, AsyncIterator[Piece]]]:
        """Have the model to oneself for an answer. All of its work is done by one thread, in order."""
        async with self._model:
            answer, pieces = await self._work(self._begin, request)

            async def each() -> AsyncIterator[Piece]:
                while (piece := await self._work(next, pieces, None)) is not None:
                    yield piece

            try:
                yield answer, each()
            finally:
                await self._work(pieces.close)

    def _begin(self, request: ChatRequest) -> tuple[Answer, Iterator[Piece]]:
        voice = self._voices.voice(request.model, request.strength)
        ids = encoded(voice, request.plain_messages, request.thinking)
        pieces = respond(voice.lm, ids, request.sampling, voice.applied)
        return Answer(request, voice.lm, len(ids)), pieces

    async def _work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


def is_local(host: str) -> bool:
    """Check that an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(endpoint: Endpoint, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until cancelled; `ready` gets the address, whose port is free to choose where `port` is 0.

    Raises:
        UserError: the address cannot be listened on.
    """
    runner = web.AppRunner(endpoint.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{host}:{port} cannot be listened on ({reason}). Give another --port or --host.") from None
        named = f"[{host}]" if ":" in host else host
        ready(f"http://{named}:{runner.addresses[0][1]}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _refused(status: int, message: str, param: str | None = None, code: str | None = None) -> web.Response:
    return web.json_response(protocol.error(message, status, param, code), status=status)

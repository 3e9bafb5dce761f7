"""Requests to an OpenAI-compatible endpoint, asked again where that can help."""

import itertools
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import SecretStr

from iconoclast.errors import UserError, one_line

LONGEST_PAUSE = 60.0
"""Seconds that an endpoint's Retry-After is honoured for at most."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class EndpointError(UserError):
    """An endpoint that cannot be asked, or a request that failed.

    Attributes:
        again: seconds after which the request may be made again; None if that would not help.
    """

    def __init__(self, message: str, again: float | None = None) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint; make it with `at`.

    Too many requests (429), errors of the server and of the connection are asked again, `backoff` seconds later and
    twice as long every time; silence and other errors are not.

    Attributes:
        url: the base, such as http://localhost:8000/v1, without its last slash.
        key: sent as a bearer token unless empty; shown nowhere.
        concurrency: requests at a time.
        timeout: seconds to wait for an answer.
        retries: how often a request is asked again.
        backoff: seconds before it is asked again for the first time.
    """

    url: str
    key: SecretStr
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0

    @classmethod
    def at(cls, url: str, api_key: str | None, whose: str, **options: Any) -> "Endpoint":
        """Check URL and key, of `whose` model; raise EndpointError if they cannot be ones."""
        return cls(_base_url(url, whose), _bearer_key(api_key, whose), **options)

    def client(self) -> httpx2.Client:
        """Open connections, which all requests of one kind can share."""
        key = self.key.get_secret_value()
        return httpx2.Client(
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=self.timeout,
            limits=httpx2.Limits(max_connections=self.concurrency),
            trust_env=httpx2.URL(self.url).host not in LOOPBACK,  # no proxy reaches this machine's own servers
        )

    def ask(self, client: httpx2.Client, path: str, request: str | None = None) -> httpx2.Response:
        """Post a request, or get what is at a path, and return a successful reply; raise EndpointError if there is none."""
        for attempt in itertools.count():
            try:
                return self._asked(client, path, request)
            except EndpointError as error:
                if error.again is None or attempt >= self.retries:
                    raise
                time.sleep(max(error.again, self.backoff * 2**attempt))
        raise AssertionError

    def told(self, text: str) -> str:
        """Return what an endpoint says in one line without the key, which it may repeat."""
        key = self.key.get_secret_value()
        return one_line(text.replace(key, "[key]") if key else text)

    def _asked(self, client: httpx2.Client, path: str, request: str | None) -> httpx2.Response:
        try:
            reply = client.request("GET" if request is None else "POST", f"{self.url}/{path}", content=request)
        except httpx2.TimeoutException:
            raise EndpointError(f"no answer within {self.timeout:g} seconds.") from None
        except httpx2.RequestError as error:
            raise EndpointError(self.told(str(error) or type(error).__name__), 0.0) from None
        if reply.is_success:
            return reply
        passing = reply.status_code == 429 or reply.status_code >= 500
        said = self.told(f"HTTP {reply.status_code} {reply.text}")
        raise EndpointError(said, _retry_after(reply) if passing else None)


def _retry_after(reply: httpx2.Response) -> float:
    """Return the seconds that the endpoint asks to be left alone; 0 if it does not say."""
    with suppress(ValueError):
        return max(0.0, min(LONGEST_PAUSE, float(reply.headers.get("Retry-After", 0))))
    return 0.0


def _base_url(url: str, whose: str) -> str:
    """Return the URL without its last slash. What is refused is not repeated in the error: it may hold a password."""
    with suppress(httpx2.InvalidURL):
        parts = httpx2.URL(url)
        if parts.scheme in ("http", "https") and parts.host and not (parts.userinfo or parts.query or parts.fragment):
            return url.rstrip("/")
    raise EndpointError(
        f"The URL of the {whose} must look like http://localhost:8000/v1, with no user name, password or query in it."
    )


def _bearer_key(api_key: str | None, whose: str) -> SecretStr:
    """Return the key; empty if there is none."""
    key = (api_key or "").strip()
    # An HTTP library would repeat a key that it cannot send in its error.
    if not key.isascii() or not key.isprintable():
        raise EndpointError(f"The API key of the {whose} holds characters that no key has. Copy it again.")
    return SecretStr(key)

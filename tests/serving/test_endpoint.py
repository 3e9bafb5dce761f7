"""`serve`: OpenAI's client is answered by base, edited and trials as the models answer; the page asks two of them."""

import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest

from iconoclast.errors import UserError
from iconoclast.runs.conversation import Conversation
from iconoclast.runs.voices import Voices, open_voices
from iconoclast.serving import protocol
from iconoclast.serving.endpoint import Endpoint, serve
from tests.support.browser import BROWSER, browser, visited
from tests.support.entry_point import QUICK, iconoclast, write_prompts

MARKUP = "<b onclick=alert(1)>hello</b><script>alert(2)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_prompts(folder)
        # In float32, so that the strong edit of a random model is finite.
        strong = ["--dtypes", "float32", "--n-trials", "2"]
        assert iconoclast("run", tiny_folder, *QUICK, *strong, "--out", "run").code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def voices(run: Path) -> Voices:
    return open_voices(str(run))


@pytest.fixture(scope="module")
def address(voices: Voices) -> Iterator[str]:
    """An endpoint in a thread of its own."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []

    def tell(address: str) -> None:
        found.append(address)
        ready.set()

    task = loop.create_task(serve(Endpoint(voices), "127.0.0.1", 0, tell))

    def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(task.cancel)
    thread.join(30)
    assert not thread.is_alive()


def asked(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "edited", "messages": messages, "max_tokens": 8, **changes}


def post(address: str, body: object, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=60)


def text(address: str, **changes: Any) -> str:
    response = post(address, asked(**changes))
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_models_answer_as_they_do_in_a_conversation(address: str, voices: Voices) -> None:
    names = [model["id"] for model in httpx2.get(f"{address}/v1/models").json()["data"]]
    assert names == ["base", "edited", "trial-0", "trial-1"]
    answers = {name: text(address, model=name) for name in names}
    assert answers == {name: "".join(Conversation(voices.voice(name), longest=8).reply("hello")) for name in names}
    assert text(address, strength=0) == answers["base"] != text(address, strength=40)


def test_the_openai_client_understands_it(address: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert client.models.retrieve("trial-1").id == "trial-1"
    whole = client.chat.completions.create(**asked(logprobs=True, top_logprobs=3))
    choice = whole.choices[0]
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(choice.logprobs.content) == whole.usage.completion_tokens <= 8
    for token in choice.logprobs.content:  # greedy: the chosen token is the likeliest
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert len(token.top_logprobs) == 3
    chunks = list(client.chat.completions.create(**asked(stream=True, stream_options={"include_usage": True})))
    said = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
    assert said == choice.message.content and chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:-1]] == [None, choice.finish_reason]
    with pytest.raises(openai.NotFoundError, match="Use one of: base, edited, trial-0 … trial-1"):
        client.chat.completions.create(**asked(model="gpt"))
    with pytest.raises(openai.BadRequestError, match="tools is not done here") as refused:
        client.chat.completions.create(**asked(tools=[{"type": "function", "function": {"name": "f"}}]))
    assert refused.value.param == "tools"


def test_stop_length_and_draws(address: str) -> None:
    whole = text(address, max_tokens=30)
    at = whole[5:7]
    cut = post(address, asked(max_tokens=30, stop=[at])).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.find(at)] and cut["finish_reason"] == "stop"
    assert post(address, asked(max_completion_tokens=2)).json()["choices"][0]["finish_reason"] == "length"
    draws = [text(address, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert text(address, temperature=2, top_p=1e-6, seed=1) == text(address)


def test_probabilities_are_those_of_the_model(address: str) -> None:
    told = post(address, asked(max_tokens=1, temperature=2, seed=3, logprobs=True, top_logprobs=20)).json()
    top = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(top) == 20 and sum(math.exp(each["logprob"]) for each in top) <= 1 + 1e-6
    assert all(each["bytes"] is None or bytes(each["bytes"]).decode() == each["token"] for each in top)


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        (asked(messages=[]), 400, "messages", "messages: List should have at least 1 item"),
        (asked(temperature=-1), 400, "temperature", "greater than or equal to 0"),
        (asked(messages=[{"role": "tool", "content": "x"}]), 400, "messages", "'system', 'developer', 'user'"),
        (asked(n=2), 400, "n", "Input should be 1"),
        (asked(messages=[{"role": "user", "content": "long " * 2000}]), 400, None, "Shorten it"),
        (asked(messages=[{"role": "user", "content": "long " * 2000}], stream=True), 400, None, "Shorten it"),
        ([], 400, None, "valid dictionary"),
    ],
)
def test_what_is_not_understood_is_an_error_in_openai_s_form(
    address: str, body: object, status: int, param: str | None, said: str
) -> None:
    response = post(address, body)
    error = response.json()["error"]
    assert response.status_code == status and error["type"] == "invalid_request_error"
    assert error["param"] == param and said in error["message"]


def test_other_addresses_and_other_pages_are_refused(address: str) -> None:
    assert httpx2.get(f"{address}/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found."
    assert post(address, asked(), Host="elsewhere.example").status_code == 403
    plain = httpx2.post(
        f"{address}/v1/chat/completions", content=json.dumps(asked()), headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 400 and "Content-Type: application/json" in plain.text


def test_requests_at_once_wait_for_each_other_and_one_that_goes_lets_the_next_in(address: str) -> None:
    expected = {name: text(address, model=name) for name in ("base", "edited", "trial-1")}

    async def ask(session: aiohttp.ClientSession, name: str) -> tuple[str, str]:
        async with session.post(f"{address}/v1/chat/completions", json=asked(model=name)) as response:
            return name, (await response.json())["choices"][0]["message"]["content"]

    async def all_at_once() -> list[tuple[str, str]]:
        async with aiohttp.ClientSession() as session:
            url = f"{address}/v1/chat/completions"
            async with session.post(url, json=asked(stream=True, max_tokens=1500)) as leaves:
                await leaves.content.readline()
                leaves.close()
            return await asyncio.gather(*(ask(session, name) for name in [*expected, *expected]))

    assert asyncio.run(all_at_once()) == [*expected.items(), *expected.items()]


def test_edits_of_two_runs_are_served_together(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(served: Endpoint, host: str, port: int, ready: Callable[[str], None]) -> None:
        ready("http://here")
        page = await served._page(None)  # type: ignore[arg-type]
        assert ">trial 0 + run:1</span>" in str(page.text)

    monkeypatch.setattr("iconoclast.serving.endpoint.serve", serve)
    done = iconoclast("serve", f"{run}:0", "--with", f"{run}:1")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "base, edited and 2 trials (trial-N + run:1); edited is trial 0 + run:1. Ctrl-C ends it." in said


def test_an_address_in_use_is_one_clear_line(voices: Voices, address: str) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(UserError, match=rf"127.0.0.1:{port} cannot be listened on .*Give another --port or --host"):
        asyncio.run(serve(Endpoint(voices), "127.0.0.1", port, lambda address: None))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_asks_two_models_and_shows_markup_as_text(
    address: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LONGEST", 12)
    expected = {name: text(address, model=name, max_tokens=12) for name in ("base", "edited")}

    async def visit(devtools: str) -> None:
        async with aiohttp.ClientSession() as session:
            page = await visited(devtools, session, width)
            await page.call("Page.navigate", url=f"{address}/")
            await page.until("document.querySelector('#model-1')?.value === 'edited'")
            send = "const m = document.querySelector('#message'); m.value = %s; m.form.requestSubmit()"
            for number, message in enumerate(["hello", MARKUP]):
                await page.run(f"{{ {send % json.dumps(message)} }}")
                await page.until(f"document.querySelectorAll('article[data-done]').length === {number + 1}")
            said = await page.run("[...document.querySelectorAll('.said')].map((each) => each.textContent)")
            assert said[:2] == [expected["base"], expected["edited"]]
            assert await page.run("document.querySelectorAll('article b, article script').length") == 0
            assert (await page.run("document.querySelectorAll('h2')[1].textContent")) == MARKUP
            assert not await page.run("document.documentElement.scrollWidth > innerWidth")
            sides = await page.run(
                "[...document.querySelectorAll('.answer')].slice(0, 2).map((each) => each.getBoundingClientRect().top)"
            )
            assert (sides[0] == sides[1]) == (width > 640)
            assert await page.faults() == []
            assert page.console == [] and {url.startswith((address, "data:")) for url in page.requests} == {True}
            assert await page.faults() == []

    with browser() as devtools:
        asyncio.run(visit(devtools))

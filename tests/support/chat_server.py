"""A chat endpoint on this machine that serves a loaded model, with its real probabilities."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from iconoclast.models.decoding import end_tokens
from iconoclast.models.language_model import LanguageModel

Reply = tuple[int, Any]
"""Status and JSON; text is sent as it is."""


@dataclass
class ChatServer:
    """What a server answers; `spoil` may put something else in the place of a reply."""

    lm: LanguageModel
    most: int = 10_000
    ids: bool = True
    names: tuple[str, ...] = ("tiny",)
    spoil: Callable[[str, Reply], Reply] = lambda path, reply: reply
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def models(self) -> Reply:
        return 200, {"data": [{"id": name} for name in self.names]}

    @torch.inference_mode()
    def complete(self, body: dict[str, Any]) -> Reply:
        top = body.get("top_logprobs", 0)
        if top > self.most:
            return 400, {"error": f"top_logprobs must be at most {self.most}"}
        messages = list(body["messages"])
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""  # as llama-server does
        prompt = self.lm.encode_texts([f"{self.lm.render_messages(messages)}{begun}"])[0]
        ids, entries = list(prompt), []
        for _ in range(body["max_tokens"]):
            logprobs = self.lm.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            best = logprobs.topk(min(max(top, 1), len(logprobs)))
            listed = [self._entry(t, v) for t, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            ids.append(int(best.indices[0]))
            entries.append({**listed[0], "top_logprobs": listed})
            if ids[-1] in end_tokens(self.lm):
                break
        text = f"{begun}{self.lm.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)}"
        choice = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": entries} if top else None}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.lm.tokenizer.decode([token], skip_special_tokens=self.ids)
        return {"token": text, "logprob": logprob, **({"id": token} if self.ids else {})}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer("models", self.serving.models())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.serving.lock:
            self.serving.requests.append(body)
            self._answer("chat/completions", self.serving.complete(body))

    @property
    def serving(self) -> ChatServer:
        return self.server.serving  # type: ignore[attr-defined]

    def _answer(self, path: str, reply: Reply) -> None:
        status, content = self.serving.spoil(path, reply)
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def serving(server: ChatServer) -> Iterator[str]:
    """Yield the URL at which a server answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.daemon_threads = True
        http.serving = server  # type: ignore[attr-defined]
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        http.shutdown()

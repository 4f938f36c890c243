"""A small server that answers as vLLM 0.32 does, over the pocket trio, for tests on loopback.

It was written beside real servers, of which ``test_real.py`` asks the same. Faults are put in front of
answers by ``faults``; ``asked`` holds what was posted.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

__all__ = ["Double", "Fault", "double", "encrypt"]

_MOST = 1024
_CACHE = next(name for name in ("cache", "past_key_values") if hasattr(BaseModelOutputWithPast(), name))
"""Its name since transformers 5.24, and before."""
Fault = Callable[["_Handler"], bool]
"""Answers a question in place of the server; False: it did nothing, and the server answers."""


class Double:
    """One model, served.

    Args:
        folder: of the model.
        pools: of a PRM: "all" tokens, step "tags", or the "last" token.
        tag: the step's tag.
        grammars: whether structured outputs are held to; else they are passed over.
        key: an API key that must be shown.
        names: under which it is served.
        started: else it has its port, where nobody answers before its ``start``.
        activates: whether pooled logits are probabilities, whatever was asked for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pools: str = "all",
        tag: int = -1,
        grammars: bool = True,
        key: str | None = None,
        names: tuple[str, ...] = (),
        started: bool = True,
        activates: bool = False,
    ) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.pools, self.tag, self.grammars, self.key = pools, tag, grammars, key
        self.root: str | None = str(folder)
        self.cards: list[dict[str, Any]] | None = None
        self.window = _MOST
        self.cached: int | None = None
        """Tokens of each prompt that it says it knew."""
        self.most_named = 1024
        """Tokens that a question may allow or ban; of more Model Runner V2 dies."""
        self.activates = activates
        self.names = names or (str(folder),)
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.left = threading.Event()
        """Set when somebody leaves a question that hangs, or a stream."""
        self.pace = 0.0
        """Seconds between two tokens of a stream."""
        self.streamed = 0
        """Tokens of streams that were sent."""
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[int, Any]] = {}
        """By question: many tests ask the same, and seeds make draws repeat."""
        self._server = _Server(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self._server.double = self
        self._server.server_bind()
        if started:
            self.start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @cached_property
    def _judges(self) -> bool:
        return "TokenClassification" in AutoConfig.from_pretrained(self.folder).architectures[0]

    @cached_property
    def _model(self) -> Any:
        kind = AutoModelForTokenClassification if self._judges else AutoModelForCausalLM
        return kind.from_pretrained(self.folder).eval()

    @cached_property
    def _vocabulary(self) -> Any:
        return from_tokenizer(self.tokenizer)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("model", self.names[0]) not in self.names:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        how = (self.pools, self.tag, self.grammars, self.activates, self.cached)
        question = json.dumps([path, body, how], sort_keys=True)
        with self._lock, torch.inference_mode():
            if question not in self._answers:
                self._answers[question] = self._computed(path, body)
            return self._answers[question]

    def _computed(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions" and not self._judges:
            return self._complete(body)
        if path == "/pooling" and self._judges:
            return 200, {"data": [{"index": 0, "data": self._pooled(body)}]}
        return 404, _error("Not Found")

    def card(self) -> Any:
        more = {"object": "model", "root": self.root, "max_model_len": self.window}
        if self.cards is not None:
            return {"object": "list", "data": self.cards}
        return {"object": "list", "data": [{"id": name, **more} for name in self.names]}

    def _pooled(self, body: dict[str, Any]) -> Any:
        tokens = body["input"]
        rows = self._model(torch.tensor([tokens])).logits[0]
        raw = body.get("use_activation") is False and not self.activates
        rows = rows if raw else rows.softmax(-1)
        if self.pools == "last":
            return rows[-1].tolist()
        kept = [self.pools == "all" or token == self.tag for token in tokens]
        return rows[torch.tensor(kept)].tolist()

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        prompt, most = body["prompt"], body.get("max_tokens", 16)
        if len(prompt) >= _MOST:
            return 400, _error(f"This model's maximum context length is {_MOST} tokens.")
        if not 0.0 <= body.get("temperature", 1.0) <= 2.0:
            return 400, _error(f"temperature must be in [0, 2], got {body['temperature']}.")
        if any(len(body.get(name, ())) > self.most_named for name in ("allowed_token_ids", "logit_bias")):
            return 500, _error("EngineCore encountered an issue.")
        grammar = (body.get("structured_outputs") or {}).get("grammar") if self.grammars else None
        matcher = grammar and LLMatcher(self._vocabulary, LLMatcher.grammar_from_lark(grammar))
        ids: list[int] = []
        told = None
        reason, why, draws = "length", None, torch.Generator().manual_seed(body.get("seed", 0))
        new, known = prompt, {"use_cache": True}
        while len(ids) < min(most, _MOST - len(prompt)):
            output = self._model(torch.tensor([new]), **known)
            logits, known = output.logits[0, -1], {_CACHE: output[_CACHE]}
            told = told or _told(logits, body)
            logits = _penalized(logits, prompt + ids, body.get("repetition_penalty", 1.0))
            new = [_drawn(_allowed(logits, body, matcher), body, draws)]
            ids += new
            if matcher:
                matcher.consume_token(ids[-1])
            if ids[-1] in body.get("stop_token_ids", []) or ids[-1] == self.tokenizer.eos_token_id:
                reason = "stop"
                break
            text = self.tokenizer.decode(ids) if body.get("stop") else ""
            why = next((stop for stop in body.get("stop", []) if stop in text), None)
            if why is not None:
                reason = "stop"
                break
        choice = {"index": 0, "text": self.tokenizer.decode(ids, skip_special_tokens=True)}
        choice |= {"finish_reason": reason, "stop_reason": why, "logprobs": told}
        choice["token_ids"] = ids if body.get("return_token_ids") else None
        details = None if self.cached is None else {"cached_tokens": self.cached}
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": details}
        return 200, {"choices": [choice], "usage": usage}


def _error(message: str) -> Any:
    return {"error": {"message": message, "type": "Error"}}


def _told(logits: torch.Tensor, body: dict[str, Any]) -> Any:
    if "logprob_token_ids" not in body:
        return None
    logs = logits.log_softmax(-1)
    return {"top_logprobs": [{f"token_id:{one}": float(logs[one]) for one in body["logprob_token_ids"]}]}


def _penalized(logits: torch.Tensor, before: list[int], penalty: float) -> torch.Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[before] = True
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _allowed(logits: torch.Tensor, body: dict[str, Any], matcher: Any) -> torch.Tensor:
    if matcher:
        packed = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        return logits.masked_fill(~bits.flatten().bool()[: len(logits)], -torch.inf)
    if "allowed_token_ids" in body:
        mask = torch.ones_like(logits, dtype=torch.bool)
        mask[body["allowed_token_ids"]] = False
        return logits.masked_fill(mask, -torch.inf)
    return logits.clone()


def _drawn(logits: torch.Tensor, body: dict[str, Any], draws: torch.Generator) -> int:
    for token, more in body.get("logit_bias", {}).items():
        logits[int(token)] += more
    if body.get("temperature", 1.0) == 0:
        return int(logits.argmax())
    chances = (logits / body["temperature"]).softmax(-1)
    chances[chances < body.get("min_p", 0.0) * chances.max()] = 0
    order = chances.argsort(descending=True)
    if (most := body.get("top_k", -1)) > 0:
        chances[order[most:]] = 0
    before = chances[order].cumsum(0) - chances[order]
    chances[order[before >= body.get("top_p", 1.0) * chances.sum()]] = 0
    return int(torch.multinomial(chances, 1, generator=draws))


class _Server(ThreadingHTTPServer):
    double: Double
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else what follows the headers waits 40 ms for their receipt.

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._do({})

    def do_POST(self) -> None:
        self._do(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _do(self, body: dict[str, Any]) -> None:
        double = self.server.double
        double.asked.append((self.path, {**body, "headers": dict(self.headers)}))
        if double.key and self.headers.get("Authorization") != f"Bearer {double.key}":
            self.say(401, {"error": "Unauthorized"})
            return
        if double.faults and double.faults.pop(0)(self):
            return
        if self.path == "/v1/models":
            self.say(200, double.card())
        else:
            try:
                answer = double.answer(self.path, body)
            except Exception as error:
                answer = 500, _error(repr(error))
            if body.get("stream") and answer[0] == 200:
                self.stream(answer[1])
            else:
                self.say(*answer)

    def stream(self, answer: Any) -> None:
        """The same token by token, as server-sent events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        choice = answer["choices"][0]
        last = len(choice["token_ids"]) - 1
        try:
            for place, token in enumerate(choice["token_ids"]):
                told = {**choice, "token_ids": [token]}
                if place < last:
                    told |= {"finish_reason": None, "stop_reason": None}
                self.wfile.write(b"data: " + json.dumps({"choices": [told]}).encode() + b"\n\n")
                self.wfile.flush()
                self.server.double.streamed += 1
                if self.server.double.pace:
                    self.hang(self.server.double.pace)
                    if self.server.double.left.is_set():
                        return
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.double.left.set()

    def say(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with suppress(ConnectionError):  # Whoever asked has left.
            self.wfile.write(data)

    def hang(self, seconds: float) -> None:
        """Say nothing until whoever asked leaves."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ready, _, _ = select.select([self.connection], [], [], 0.05)
            if ready and self._is_left():
                self.server.double.left.set()
                break
        self.close_connection = True

    def _is_left(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:  # Whoever asked had not read it all.
            return True

    def drop(self) -> None:
        """Close the connection in mid-answer."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


@contextmanager
def double(folder: Path, **options: Any) -> Iterator[Double]:
    """A double that ends with the block."""
    made = Double(folder, **options)
    try:
        yield made
    finally:
        made.stop()


def encrypt(server: Double, folder: Path) -> str:
    """Have it speak TLS, with a certificate that nobody knows; its URL."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    how = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command = ["openssl", *how, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    return server.url.replace("http:", "https:")

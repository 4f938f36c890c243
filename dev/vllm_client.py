"""How many questions (HTTP requests) a second this side manages over servers that answer immediately.

    python dev/vllm_client.py [REQUESTS]

Three processes stand in for vLLM: canned steps of 12 tokens, a fixed reward, no model. So what is measured is
all that is done between answers: prompts, steps, HTTP. A real server takes some 100 ms for an answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

FIRST = "Ava has {} marbles. She buys 9 more. How many marbles does Ava have now?"
STEP, END = "She buys 9 more: 12 + 9 = 21.\n\n", "The answer is \\boxed{21}."
LONGEST = 420
"""Tokens of prompt and answer after which the last step is sent: some 33 steps."""


async def serve(folder: str) -> None:
    """Answer immediately; prints the port on stdout."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    step, end = (tokenizer.encode(text, add_special_tokens=False) for text in (STEP, END))
    end.append(tokenizer.eos_token_id)

    def answer(path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": folder, "root": folder, "max_model_len": 1024}]}
        if path == "/pooling":
            return {"data": [{"data": [[0.0, 3.0]] * len(body["input"])}]}
        ids = (step if len(body["prompt"]) < LONGEST else end)[: body["max_tokens"]]
        stop = None if ids[-1] == tokenizer.eos_token_id else "\n\n"
        choice = {"text": tokenizer.decode(ids, skip_special_tokens=True), "token_ids": ids}
        return {"choices": [{**choice, "finish_reason": "stop", "stop_reason": stop}]}

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                said = json.dumps(answer(head.split()[1], body)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(said) + said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def measure(pipe: Any, requests: int) -> None:
    """All requests at once."""
    start = time.perf_counter()
    made = await asyncio.gather(*[pipe.agenerate(FIRST.format(n), threshold=0.5) for n in range(requests)])
    seconds, steps = time.perf_counter() - start, sum(len(one.steps) for one in made)
    a_step, a_second = 1000 * seconds / steps, 2 * steps / seconds
    print(f"{requests} requests, {steps} steps: {a_step:.2f} ms a step, {a_second:.0f} questions a second")


def main() -> None:
    """Three servers, and a pipeline over them."""
    from rsd_integrations import RSDPipeline
    from rsd_integrations.pocket import pocket_paths

    paths = pocket_paths()
    servers = [
        subprocess.Popen([sys.executable, __file__, "serve", str(folder)], stdout=subprocess.PIPE, text=True)
        for folder in (paths.draft, paths.target, paths.prm)
    ]
    try:
        ports = [one.stdout.readline().strip() for one in servers if one.stdout]
        with RSDPipeline.from_vllm(*(f"http://127.0.0.1:{port}" for port in ports)) as pipe:
            for _ in range(3):
                asyncio.run(measure(pipe, int(sys.argv[1]) if len(sys.argv) > 1 else 64))
    finally:
        for one in servers:
            one.kill()
            one.communicate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(sys.argv[2]))
    else:
        main()

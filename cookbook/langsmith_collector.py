"""A LangSmith that listens on loopback and remembers the runs it was sent."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_INFO = {
    "version": "0.12.0",
    "batch_ingest_config": {
        "use_multipart_endpoint": True,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
        "scale_up_nthreads_limit": 1,
        "scale_up_qsize_trigger": 1000,
        "scale_down_nempty_trigger": 4,
    },
}


@dataclass
class Collector:
    """``runs``: by id, each the union of what was posted and patched."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(_INFO)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, self.headers["Content-Type"], body)
                self._answer({})

            def _answer(self, value: Any) -> None:
                payload = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, content_type: str, body: bytes) -> None:
        """One request of the SDK."""
        assert path == "/runs/multipart", path
        message = BytesParser(policy=HTTP).parsebytes(
            b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
        )
        with self._lock:
            for part in message.iter_parts():
                name = str(part.get_param("name", header="Content-Disposition"))
                _, run_id, *rest = name.split(".")
                value = json.loads(part.get_payload(decode=True))
                run = self.runs.setdefault(run_id, {})
                run.update(
                    {rest[0]: value} if rest else {key: v for key, v in value.items() if v is not None}
                )

    def children(self, run_id: str | None) -> list[dict[str, Any]]:
        """Runs below a run, in LangSmith's order."""
        found = [run for run in self.runs.values() if run.get("parent_run_id") == run_id]
        return sorted(found, key=lambda run: run["dotted_order"])

    def tree(self, run: dict[str, Any]) -> Any:
        """(name, children) all the way down."""
        return run["name"], [self.tree(child) for child in self.children(run["id"])]

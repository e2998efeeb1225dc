"""A local HTTP server that answers by a script: faults first, then what a handler says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
"""Status and body; text is sent as it is, status 0 drops the connection."""


class ScriptedServer:
    """Records requests; each is answered by the next fault, or by the handler once the faults are used up."""

    def __init__(self, handler: Callable[[str, dict[str, Any]], Reply], faults: list[Reply] | None = None) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.most_at_once = 0
        self._now, self._lock = 0, threading.Lock()
        self._faults = list(faults or [])
        self._handler = handler
        self.base_url = ""

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        """The next reply."""
        with self._lock:
            self.requests.append((path, body))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            fault = self._faults.pop(0) if self._faults else None
        try:
            return self._handler(path, body) if fault is None else fault
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def serving(server: ScriptedServer) -> Iterator[ScriptedServer]:
    """Listen on a free port of this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            status, reply = server.reply(self.path, body)
            if status == 0:
                self.connection.close()
                return
            content = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            # The client then need not wait.
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET = _answer

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)

"""A scripted judge on 127.0.0.1, behind the part of the OpenAI API that the client uses; it ends with its test."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A test that asks more than this has lost control.
_MOST_REQUESTS = 2000


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server does with a request.

    Attributes:
        body: JSON, or text that is sent as it stands; ``None`` drops the connection.
        status: of HTTP.
        headers: further ones.
        after: is waited for first, for at most ten seconds.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: threading.Event | None = None


def says(
    text: str | None, *, top: Mapping[str, float] | None = None, usage: tuple[int, int] | None = (100, 1)
) -> Reply:
    """A chat completion.

    Args:
        text: of the reply.
        top: token -> log-probability at the first token.
        usage: tokens of prompt and completion.
    """
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if top is not None:
        tokens = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
        choice["logprobs"] = {"content": [{"token": "", "logprob": 0.0, "top_logprobs": tokens}]}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(body=body)


def answers_shown(body: Mapping[str, Any]) -> tuple[str, str]:
    """The answers in a question of the shipped template for two labels, in the order shown."""
    text = body["messages"][0]["content"]
    found = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)\n\nWhich answer", text, flags=re.DOTALL)
    assert found is not None
    return found[1], found[2]


def prefers_longer(body: Mapping[str, Any]) -> Reply:
    """A judge without a taste for a position."""
    first, second = answers_shown(body)
    return says("A" if len(first) > len(second) else "B")


@dataclass
class Server:
    """What has arrived at a server that listens.

    Attributes:
        url: for the client.
        requests: bodies in the order of arrival.
        keys: authorization headers, likewise.
        script: request -> what is done with it; a test may change it.
    """

    url: str
    requests: list[dict[str, Any]]
    keys: list[str]
    script: Callable[[dict[str, Any]], Reply]

    def asked(self) -> list[tuple[str, str]]:
        """The pairs of answers that were asked about, as they were shown."""
        return [answers_shown(body) for body in self.requests]


@contextmanager
def serve(script: Callable[[dict[str, Any]], Reply] = prefers_longer) -> Iterator[Server]:
    """A server that does with every request what the script says."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                server.requests.append(body)
                server.keys.append(self.headers["authorization"])
                is_too_many = len(server.requests) > _MOST_REQUESTS
            reply = Reply(status=400, body="too many requests for a test") if is_too_many else server.script(body)
            if reply.after is not None:
                reply.after.wait(10)
            self.close_connection = reply.body is None
            if reply.body is None:
                return
            content = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            try:
                self.send_response(reply.status)
                for name, value in {"content-type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                # Whoever asked has gone: it timed out, or was killed.
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server = Server(url=f"http://127.0.0.1:{http.server_port}/v1", requests=[], keys=[], script=script)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join(10)


def in_turn(replies: Sequence[Reply]) -> Callable[[dict[str, Any]], Reply]:
    """A script that gives one reply after the other, the last one for ever."""
    rest, lock = list(replies), threading.Lock()

    def script(body: dict[str, Any]) -> Reply:
        with lock:
            return rest.pop(0) if len(rest) > 1 else rest[0]

    return script

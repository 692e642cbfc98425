"""An OpenAI-compatible endpoint of the tests' own, on 127.0.0.1, that can be made to misbehave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from betaflow.config import LLMSettings

KEY = "sk-Never-To-Be-Seen-0123"
VARIABLE = "TEST_JUDGE_KEY"


class Reply(NamedTuple):
    """What the server does with one request: a response, or `cut`, or nothing for a while."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012
    cut: bool = False
    hang: float = 0.0


def said(text: str | None, reason: str = "stop", **more: Any) -> Reply:
    """An answer of the usual form."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "judge-2024",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        **more,
    }
    return Reply(body=json.dumps(body).encode())


def refused(status: int, message: str, **headers: str) -> Reply:
    """An error of the usual form."""
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), headers)


def verdict(letter: str) -> Reply:
    return said(f"Comparison: one is better.\nMore positive: {letter}")


def texts(content: str) -> tuple[str, str, str]:
    """The prompt and the completions, in the order shown, of a question, found by its fence."""
    fence = re.search(r"<(text-[0-9a-f]{16})> and a line", content)
    assert fence
    found = re.findall(rf"^<{fence[1]}>\n(.*?)\n</{fence[1]}>$", content, re.DOTALL | re.MULTILINE)
    prompt, first, second = found
    return prompt, first, second


class Endpoint:
    """The server: `reply` decides; `requests` and `keys` are what came; `most`, at once."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = ""


def handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/chat/completions"
            with endpoint.lock:
                endpoint.requests.append(body)
                endpoint.keys.append(self.headers.get("authorization"))
                endpoint.now += 1
                endpoint.most = max(endpoint.most, endpoint.now)
            try:
                self.answer(endpoint.reply(body))
            except OSError:  # the client is gone
                self.close_connection = True
            finally:
                with endpoint.lock:
                    endpoint.now -= 1

        def answer(self, reply: Reply) -> None:
            endpoint.closing.wait(reply.hang)
            if reply.cut:
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serve(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """Run an endpoint that answers by `reply`."""
    endpoint = Endpoint(reply)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(endpoint))
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def settings(url: str, **changes: Any) -> LLMSettings:
    values: dict[str, Any] = {
        "base_url": url,
        "model": "judge",
        "key_variable": None,
        "template": "sentiment",
        "temperature": 0.0,
        "max_tokens": 200,
        "options": {},
        "concurrency": 4,
        "timeout": 30.0,
        "retries": 3,
        "deadline": None,
        "prompt_price": None,
        "completion_price": None,
    }
    return LLMSettings(**values | changes)

"""A proxy between a client and an S3 server that does to chosen requests what networks and servers do to them."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>'
CODES = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "429": (429, "TooManyRequests"),
    "409": (409, "ConditionalRequestConflict"),
    "403": (403, "AccessDenied"),
    "expired": (403, "ExpiredToken"),
}


@dataclass
class Fault:
    """What happens to how many of the next requests of a method whose path ends so."""

    kind: str  # one of CODES, or reset | silent | slow | truncated | flipped | lost
    times: int = 1
    method: str = ""
    path: str = ""


@dataclass
class Proxy:
    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, what was done to it
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, kind: str, times: int = 1, *, method: str = "", path: str = "") -> None:
        """Does something to the next so many requests that fit."""
        self.faults.append(Fault(kind, times, method, path))

    def met(self, kind: str) -> int:
        """How many requests met this fault."""
        return sum(done == kind for _, _, done in self.seen)

    def choose(self, method: str, path: str) -> str:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method in ("", method) and path.partition("?")[0].endswith(fault.path):
                    fault.times -= 1
                    self.seen.append((method, path, fault.kind))
                    return fault.kind
            self.seen.append((method, path, ""))
            return ""


def handler(proxy: Proxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.choose(self.command, self.path)
            if fault in CODES:
                status, code = CODES[fault]
                self.give(status, {"Content-Type": "application/xml"}, ERROR.format(code=code).encode())
            elif fault == "reset":
                self.reset()
            elif fault == "silent":
                time.sleep(3)
                self.reset()
            else:
                status, headers, data = self.forward(body)
                DAMAGE.get(fault, Handler.give)(self, status, headers, data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            hop = ("connection", "transfer-encoding", "content-length")
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length") or "0"
            return answer.status, kept, data

        def begin(self, status: int, headers: dict[str, str], length: int) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def give(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.begin(status, headers, len(data))
            self.wfile.write(data)

        def slow(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.begin(status, headers, len(data))
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)

        def truncated(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.begin(status, headers, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.reset()

        def flipped(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.give(status, headers, data[:-1] + bytes([data[-1] ^ 1]))

        def lost(self, *_: object) -> None:
            self.reset()

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    DAMAGE: dict[str, Callable] = {
        "slow": Handler.slow,
        "truncated": Handler.truncated,
        "flipped": Handler.flipped,
        "lost": Handler.lost,
    }
    return Handler


@contextmanager
def between(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of the server at an endpoint, for as long as the block runs."""
    proxy = Proxy("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(proxy, upstream.removeprefix("http://")))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()

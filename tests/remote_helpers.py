"""An S3 server on loopback, and a proxy before it in which answers get lost."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REFUSE, RESET, LOSE, CUT = "503", "reset", "lost", "cut"


@dataclass
class Fault:
    """What happens to the first few requests of a kind: refused, cut off before or after they reach the server, or halved."""

    what: str
    method: str
    path: str  # a regular expression
    times: int = 1


@dataclass
class Faults:
    """What goes wrong, and every request that came."""

    waiting: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, method: str = ".*", path: str = "", times: int = 1) -> Fault:
        fault = Fault(what, method, path, times)
        self.waiting.append(fault)
        return fault

    def take(self, method: str, path: str) -> str:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.waiting:
                if fault.times and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.what
        return ""

    def count(self, method: str, path: str = "") -> int:
        return sum(bool(re.fullmatch(method, m) and re.search(path, p)) for m, p in self.seen)

    def clear(self) -> None:
        self.waiting.clear()
        self.seen.clear()


def proxy(host: str, port: int, faults: Faults) -> ThreadingHTTPServer:
    """Return a proxy that is at work, and ends with the process or its ``shutdown``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            what = faults.take(self.command, self.path)
            if what == REFUSE:
                self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if what == RESET:
                self.hang_up()
                return
            connection = http.client.HTTPConnection(host, port, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if what == LOSE:
                self.hang_up()
                return
            self.answer(answer.status, dict(answer.getheaders()), data, cut=what == CUT)

        def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            known = {name.lower(): value for name, value in headers.items()}
            length = known.pop("content-length", len(data)) if self.command == "HEAD" else len(data)
            for name in ("transfer-encoding", "connection", "date", "server", "content-length"):
                known.pop(name, None)
            for name, value in known.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.wfile.flush()
            if cut:
                self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that has hung up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


# It ends with its input, which ends with whoever started it.
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class S3:
    """moto's server, behind the proxy.

    Attributes:
        faults: What goes wrong between the two.
        variables: What a process needs in its environment.

    """

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        self._at = "127.0.0.1", int(self._server.stdout.readline())
        self.faults = Faults()
        self._proxy = proxy(*self._at, self.faults)
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_port}",
            "AWS_ACCESS_KEY_ID": "CANARYKEY",
            "AWS_SECRET_ACCESS_KEY": "CANARYSECRET",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }
        self._buckets = 0

    def close(self) -> None:
        self._proxy.shutdown()
        self._server.communicate()

    def bucket(self) -> str:
        """Make a bucket; return its URL."""
        self._buckets += 1
        name = f"bucket-{os.getpid()}-{self._buckets}"
        assert self.ask("PUT", f"/{name}")[0] == 200
        return f"s3://{name}"

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask the server itself, not the proxy."""
        connection = http.client.HTTPConnection(*self._at, timeout=30)
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"}
        connection.request(method, path, body, signed)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def put(self, url: str, data: bytes) -> None:
        assert self.ask("PUT", url.removeprefix("s3:/"), data)[0] == 200

    def delete(self, url: str) -> None:
        assert self.ask("DELETE", url.removeprefix("s3:/"))[0] == 204

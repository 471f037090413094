"""Real servers on loopback: an S3 API, nginx, and a proxy that spoils what passes through it."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple

from tests.support.runs import ROOT, free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
AZURITE = shutil.which(
    "azurite-blob", path=f"{ROOT}/.venv/azurite/node_modules/.bin:{os.environ.get('PATH', '')}"
)
NO_AZURITE = "azurite is not installed: `make system` does that where there is npm"
NO_NGINX = "nginx is not installed: apt-get install nginx-light"
_WAIT_S = 30.0


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 API server in a process of its own, which ends with this one; yields its endpoint."""
    command = [sys.executable, "-m", "tests.support.servers"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()


def s3_environment(endpoint: str) -> dict[str, str]:
    """The variables that lead an S3 client to `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


def make_bucket(endpoint: str, name: str) -> str:
    """Create a bucket; returns its URL."""
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=_WAIT_S):
        return f"s3://{name}"


@contextmanager
def azurite() -> Iterator[dict[str, str]]:
    """Azure's blob server with an empty container `box`; yields the variables that lead a client there."""
    if AZURITE is None:
        raise FileNotFoundError(NO_AZURITE)
    port, account, key = free_port(), "somebody", base64.b64encode(b"secret").decode()
    command = [AZURITE, "--blobPort", str(port), "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{account}:{key}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            endpoint = f"http://127.0.0.1:{port}/{account}"
            date = email.utils.formatdate(usegmt=True)
            resource = f"/{account}/{account}/box\nrestype:container"
            text = "PUT" + 12 * "\n" + f"x-ms-date:{date}\nx-ms-version:2021-08-06\n{resource}"
            digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
            headers = {
                "x-ms-date": date,
                "x-ms-version": "2021-08-06",
                "Authorization": f"SharedKey {account}:{base64.b64encode(digest).decode()}",
                "Content-Length": "0",
            }
            asked = urllib.request.Request(f"{endpoint}/box?restype=container", method="PUT", headers=headers)
            with urllib.request.urlopen(asked, timeout=_WAIT_S):
                yield {
                    "AZURE_STORAGE_ACCOUNT_NAME": account,
                    "AZURE_STORAGE_ACCOUNT_KEY": key,
                    "AZURE_STORAGE_ENDPOINT": endpoint,
                    "AZURE_ALLOW_HTTP": "true",
                }
        finally:
            process.terminate()


@contextmanager
def without_ranges(root: Path) -> Iterator[str]:
    """Serve the files below `root` as `python -m http.server` does, without byte ranges; yields the URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def nginx(root: Path, folder: Path, delay_s: float = 0.0) -> Iterator[str]:
    """Serve the files below `root`, each request after `delay_s`; yields the URL. `folder` is for nginx itself."""
    if NGINX is None:
        raise FileNotFoundError(NO_NGINX)
    port = free_port()
    slow = f"location / {{ echo_sleep {delay_s}; echo_exec /now$uri; }} location /now/ {{ alias {root}/; }}"
    spools = "".join(
        f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(
        (f"load_module {_module('http_echo')}; " if delay_s else "")
        + ("user root; " if os.geteuid() == 0 else "")
        + f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; "
        f"events {{ worker_connections 1024; }} http {{ access_log off; sendfile on; {spools}"
        f"server {{ listen 127.0.0.1:{port}; root {root}; {slow if delay_s else ''} }} }}\n"
    )
    with subprocess.Popen([NGINX, "-p", folder, "-c", configuration, "-e", folder / "error.log"]) as process:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _module(name: str) -> str:
    built = subprocess.run([str(NGINX), "-V"], capture_output=True, text=True, check=True).stderr
    folder = next(part for part in built.split() if part.startswith("--modules-path=")).partition("=")[2]
    return f"{folder}/ngx_{name}_module.so"


def _wait_for(port: int) -> None:
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@dataclass
class Fault:
    """What happens to the next `times` requests whose path holds `match` and whose method is among `methods`.

    reset: the connection is torn down. lose: the same once the server has done what was asked. status: an empty
    answer with that code. truncate: half the body, then the end of the connection. corrupt: one bit of the body is
    flipped. stall: `seconds` pass first. gather: it waits until `barrier` has as many waiting as it is for.
    """

    kind: Literal["reset", "lose", "status", "truncate", "corrupt", "stall", "gather"]
    match: str = ""
    times: int = 1
    methods: tuple[str, ...] = ("GET",)
    code: int = 503
    seconds: float = 0.0
    barrier: threading.Barrier | None = None


class Request(NamedTuple):
    """What a client asked for."""

    method: str
    path: str
    range: str | None
    at: float  # seconds, of the monotonic clock


class Proxy:
    """An HTTP proxy in front of one server; `faults` may be added at any time, `requests` says what came."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.forward(proxy)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, request: Request) -> Fault | None:
        """Note a request; the fault that meets it."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and fault.match in request.path and request.method in fault.methods:
                    fault.times -= 1
                    return fault
        return None

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A Proxy for the time of the block."""
    with closing(Proxy(upstream)) as made:
        yield made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: http.client.HTTPConnection | None = None

    def forward(self, proxy: Proxy) -> None:
        """Pass one request on and its answer back, spoiled by the fault that meets it."""
        body = self._body()
        fault = proxy.take(Request(self.command, self.path, self.headers.get("Range"), time.monotonic()))
        if fault and fault.kind == "stall":
            time.sleep(fault.seconds)
        if fault and fault.barrier:
            fault.barrier.wait(_WAIT_S)
        if fault and fault.kind == "reset":
            self._reset()
            return
        if fault and fault.kind == "status":
            self._answer(fault.code, {"Content-Length": "0"}, b"")
            return
        if self.upstream is None:
            self.upstream = http.client.HTTPConnection(proxy.upstream, timeout=_WAIT_S)
        self.upstream.request(self.command, self.path, body, dict(self.headers.items()))
        answer = self.upstream.getresponse()
        data = answer.read()
        if fault and fault.kind == "lose":
            self._reset()
            return
        hop = ("transfer-encoding", "connection", "keep-alive")
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(data))
        if fault and fault.kind == "truncate":
            data = data[: len(data) // 2]
            self.close_connection = True
        if fault and fault.kind == "corrupt":
            data = bytes([data[0] ^ 1]) + data[1:]
        self._answer(answer.status, headers, data)

    def _reset(self) -> None:
        # A linger of zero makes the close a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: what came is in `Proxy.requests`."""


def _serve_s3() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()  # ends when the parent does


if __name__ == "__main__":
    _serve_s3()

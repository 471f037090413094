"""A server on loopback that speaks the OpenAI protocol and describes the pictures it is sent, truly decoded."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
from PIL import Image

from tests.support.clips import PALETTE

_LONGEST_WAIT_S = 20.0


@dataclass
class Fault:
    """What happens to the next `times` requests for a caption, of clips of that colour (None: of any).

    status: an answer with that code. hang: none within `seconds`. empty: a caption without words. cut: a caption
    that ends amid a character. page: a web page, as of a proxy. other: JSON that is no chat completion. drop: the
    connection is closed. none: it is answered.
    """

    kind: str
    times: int = 1
    code: int = 503
    seconds: float = 0.0
    colour: int | None = None


class ChatServer:
    """`faults` may be added at any time; `chats` are the requests for captions that were understood.

    Where `together` is more than 1, answers wait until so many requests are there at once (or some seconds).
    """

    def __init__(
        self, models: tuple[str, ...] = ("tiny",), key: str | None = None, together: int = 1
    ) -> None:
        self.models = models
        self.key = key
        self.faults: list[Fault] = []
        self.chats: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._together = together
        self._change = threading.Condition()
        handler = type("Handler", (_Handler,), {"chat_server": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What goes to --endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """One more request at once; meets the others here."""
        with self._change:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._change.notify_all()
            self._change.wait_for(lambda: self.most_at_once >= self._together, _LONGEST_WAIT_S)
        try:
            yield
        finally:
            with self._change:
                self._at_once -= 1

    def take_fault(self, colour: int) -> Fault | None:
        """The fault that meets a request about a clip of that colour."""
        with self._change:
            for fault in self.faults:
                if fault.times > 0 and fault.colour in (None, colour):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def chat_server(**settings: Any) -> Iterator[ChatServer]:
    """A ChatServer for the time of the block."""
    server = ChatServer(**settings)
    try:
        yield server
    finally:
        server.close()


def described(frames: int, colour: int) -> str:
    """What the server answers on that many frames of a colour of PALETTE."""
    return f"This video shows {frames} frames of colour {colour}."


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chat_server: ChatServer

    def do_GET(self) -> None:
        """The list of models."""
        if not self._let_in():
            return
        if self.path != "/v1/models":
            self._answer(404, {"error": {"message": f"no {self.path} here"}})
            return
        self._answer(
            200,
            {"object": "list", "data": [{"id": name, "object": "model"} for name in self.chat_server.models]},
        )

    def do_POST(self) -> None:
        """One chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        if self.path != "/v1/chat/completions":
            self._answer(404, {"error": {"message": f"no {self.path} here"}})
        elif body["model"] not in self.chat_server.models:
            self._answer(404, {"error": {"message": f"The model {body['model']!r} does not exist."}})
        else:
            self._chat(body)

    def _chat(self, body: dict[str, Any]) -> None:
        (message,) = body["messages"]
        assert message["role"] == "user"
        frames = [frame for part in message["content"] for frame in _pictures(part)]
        (text,) = (part["text"] for part in message["content"] if part["type"] == "text")
        colour = _colour(frames)
        with self.chat_server.counted():
            fault = self.chat_server.take_fault(colour)
            if fault and fault.kind == "none":
                fault = None
            if fault and fault.kind == "hang":
                time.sleep(fault.seconds)
            if fault and fault.kind in ("hang", "drop"):
                self.close_connection = True
                return
            if fault and fault.kind == "status":
                self._answer(fault.code, {"error": {"message": f"fault {fault.code}"}})
                return
            if fault and fault.kind == "page":
                self._send(200, "text/html", b"<html>\n<h1>Log in</h1></html>")
                return
            if fault and fault.kind == "other":
                self._answer(200, {"detail": "queued"})
                return
            self.chat_server.chats.append({**body, "frames": frames, "text": text, "colour": colour})
            answer = " " if fault and fault.kind == "empty" else described(len(frames), colour)
            answer += "\ud83d" if fault and fault.kind == "cut" else ""
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": answer},
            }
            self._answer(
                200,
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [choice],
                },
            )

    def _let_in(self) -> bool:
        key = self.chat_server.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._answer(401, {"error": {"message": "that is not the key"}})
        return False

    def _answer(self, code: int, value: Any) -> None:
        self._send(code, "application/json", json.dumps(value).encode())

    def _send(self, code: int, kind: str, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: what came is in `ChatServer.chats`."""


def _pictures(part: dict[str, Any]) -> list[np.ndarray]:
    """The frames of one part of a message."""
    if part["type"] == "image_url":
        with Image.open(io.BytesIO(_data(part["image_url"]["url"], "image/jpeg"))) as picture:
            assert picture.format == "JPEG"
            return [np.asarray(picture.convert("RGB"))]
    if part["type"] == "video_url":
        with av.open(io.BytesIO(_data(part["video_url"]["url"], "video/mp4"))) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert part["type"] == "text"
    return []


def _data(url: str, kind: str) -> bytes:
    parts = urlsplit(url)
    head, _, body = parts.path.partition(",")
    assert (parts.scheme, head) == ("data", f"{kind};base64")
    return base64.b64decode(body, validate=True)


def _colour(frames: list[np.ndarray]) -> int:
    """The number of the colour of PALETTE that frames are shades of."""
    mean = np.mean([frame.mean(axis=(0, 1)) for frame in frames], axis=0)
    palette = np.array(PALETTE, float)
    likeness = palette @ mean / np.linalg.norm(palette, axis=1)
    return int(likeness.argmax())

"""A stand-in for the hub's HTTP API, as far as an upload of a folder needs it. Never reaches the net."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.runs import lora_blocks, tiny_config, write_config

TOKEN = "hf_standin"
_OID = "0" * 40


class Hub:
    """What the stand-in holds: files by repository and path. `refuse`: beginnings of paths that get a status."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.refuse: dict[str, int] = {}
        self.role = "write"
        self.asked: list[str] = []
        self.endpoint = ""
        self._large: dict[str, bytes] = {}

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Status and JSON of a request."""
        self.asked.append(f"{method} {path}")
        for beginning, status in self.refuse.items():
            if path.startswith(beginning):
                return status, {"error": f"refused with {status}"}
        if path.startswith("/large/"):
            self._large[path.removeprefix("/large/")] = body
            return 200, {}
        if token != TOKEN:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)
        if match and match[1] in self.repositories:
            return 200, {"id": match[1], "private": match[1] in self.private}
        if match := re.fullmatch(r"/api/models/(.+)/tree/main", path):
            files = self.repositories[match[1]].items()
            return 200, [
                {"type": "file", "path": name, "oid": _OID, "size": len(content)} for name, content in files
            ]
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            return 200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
        if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {
                "transfer": "basic",
                "objects": [self._place(one) for one in json.loads(body)["objects"]],
            }
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            return self._commit(match[1], body)
        return 404, {"error": f"the stand-in knows no {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{name}"}
        self.repositories[name] = {}
        if asked.get("visibility") == "private":
            self.private.add(name)
        return 200, {"url": f"{self.endpoint}/{name}", "name": name}

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.endpoint}/large/{one['oid']}"}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": upload}}

    def _commit(self, repository: str, body: bytes) -> tuple[int, Any]:
        files = self.repositories[repository]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                content = self._large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        return 200, {
            "success": True,
            "commitOid": _OID,
            "commitUrl": f"{self.endpoint}/{repository}/commit/{_OID}",
        }


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith(".safetensors")
    return {
        "path": file["path"],
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": False,
        "oid": None,
    }


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The stand-in, listening on this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, answer = hub.answer(self.command, self.path.partition("?")[0], body, token)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environ_of(hub: Hub, token: str = TOKEN) -> dict[str, str]:
    """What leads a process to the stand-in, with a token."""
    # The library's own storage service has no stand-in; without it files go the way git-lfs has them.
    return {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def hub_config(model_folder: Path, data: Path, output: Path) -> Path:
    """Config of a LoRA run of one step that pushes to me/mine."""
    pushed = {"push_to_hub": True, "hub_model_id": "me/mine"}
    blocks = {**lora_blocks(), "optimization": {"steps": 1}, "hub": pushed}
    return write_config(output.with_suffix(".yaml"), tiny_config(model_folder, data, output, **blocks))

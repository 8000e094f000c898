"""A small server that answers the hub's library as the hub does, for uploads without a network."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_test"


@dataclass
class FakeHub:
    """repos: private or not, by id. files: content by repository and path. forbidden: owners that refuse the token."""

    endpoint: str = ""
    repos: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON of a request with the right token."""
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization', 'me')}/{asked['name']}"
            if repo.split("/")[0] in self.forbidden:
                return 403, {"error": "You don't have the rights to create a model under this namespace"}
            if repo in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.endpoint}/{repo}"}
            self.repos[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return 200, {"url": f"{self.endpoint}/{repo}", "name": repo, "id": "1"}
        if path == "/api/validate-yaml":
            metadata = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            is_valid = not str(metadata.get("base_model", "a/b")).startswith("/")
            return (200, {}) if is_valid else (400, {"error": "base_model: is no id of the hub"})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            asked = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files.setdefault(match[1], {})[line["value"]["path"]] = content
            url = f"{self.endpoint}/{match[1]}/commit/{'0' * 40}"
            return 200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None, "hookOutput": ""}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            if match[1] not in self.repos:
                return 404, {"error": "Repository not found"}
            return 200, {"id": match[1], "sha": "0" * 40, "siblings": []}
        return 404, {"error": f"no such path: {path}"}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.calls.append(path)
            if self.headers.get("Authorization") == f"Bearer {TOKEN}" or path in ("/", "/api/validate-yaml"):
                status, content = (200, {}) if path == "/" else hub.answer(path, body)
            else:
                status, content = 401, {"error": "Invalid username or password."}
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status >= 400:
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = respond

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()

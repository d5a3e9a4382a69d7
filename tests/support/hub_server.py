"""Stand-in of the Hugging Face Hub: a local server for huggingface_hub's uploads and downloads."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_of_a_test"
READER_TOKEN = "hf_that_only_reads"
OWNER = "me"  # account of the token


class HubServer(ThreadingHTTPServer):
    """Server with repositories of models in memory.

    Args:
        large: Suffixes of files that are uploaded by Git LFS, as the Hub does for weights.
    """

    daemon_threads = True

    def __init__(self, large: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.large = large
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # by id and branch
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []  # of commits
        self.objects: dict[str, bytes] = {}  # of Git LFS

    @property
    def address(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._read_body()
        for method, pattern, act in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                return act(self, body, *found.groups())
        return self._send({"error": f"no {self.command} {path}"}, 404)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: Any, status: int = 200, **headers: str) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _may_write(self) -> bool:
        given = self.headers.get("Authorization", "")
        if given == f"Bearer {TOKEN}":
            return True
        if given == f"Bearer {READER_TOKEN}":
            self._send({"error": "You don't have the rights to create a model"}, 403)
        else:
            self._send({"error": "Invalid username or password."}, 401)
        return False

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.server.repositories.get(name, {})
        found = branches.get(revision)
        if found is None:
            found = next((one for one in branches.values() if _commit(one) == revision), None)
        if found is None:
            code = "RevisionNotFound" if branches else "RepoNotFound"
            self._send({"error": code}, 404, X_Error_Code=code)
        return found

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        if not self._may_write():
            return
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        is_new = name not in self.server.repositories
        if is_new:
            self.server.repositories[name] = {"main": {}}
            self.server.private[name] = asked.get("visibility") == "private"
        self._send({"url": f"{self.server.address}/{name}"}, 200 if is_new else 409)

    def create_branch(self, body: bytes, name: str, branch: str) -> None:
        branches = self.server.repositories[name]
        is_new = branch not in branches
        branches.setdefault(branch, dict(branches["main"]))
        self._send({}, 200 if is_new else 409)

    def validate_yaml(self, body: bytes) -> None:
        assert json.loads(body)["content"].startswith("---")
        self._send({"errors": [], "warnings": []})

    def prepare_upload(self, body: bytes, name: str, revision: str) -> None:
        paths = [one["path"] for one in json.loads(body)["files"]]
        modes = ["lfs" if path.endswith(self.server.large) else "regular" for path in paths]
        self._send(
            {
                "files": [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False}
                    for path, mode in zip(paths, modes, strict=True)
                ]
            }
        )

    def offer_objects(self, body: bytes, name: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.address}/objects/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._send({"transfer": "basic", "objects": objects})

    def put_object(self, body: bytes, key: str) -> None:
        assert hashlib.sha256(body).hexdigest() == key
        self.server.objects[key] = body
        self._send({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if not self._may_write():
            return
        files = self.server.repositories[name][revision]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.objects[value["oid"]]
        key = _commit(files)
        address = f"{self.server.address}/{name}/commit/{key}"
        self._send({"success": True, "commitOid": key, "commitUrl": address})

    def describe(self, body: bytes, name: str, revision: str | None = None) -> None:
        files = self._files(name, revision or "main")
        if files is not None:
            names = [{"rfilename": one} for one in files]
            self._send({"id": name, "sha": _commit(files), "siblings": names, "tags": []})

    def list_files(self, body: bytes, name: str, revision: str) -> None:
        files = self._files(name, revision)
        if files is not None:
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
                for path, content in files.items()
            ]
            self._send(listed)

    def read_file(self, body: bytes, name: str, revision: str, path: str) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        key = _commit(files)
        if path not in files:
            self._send({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=key)
        else:
            content = files[path]
            self._send(content, X_Repo_Commit=key, ETag=f'"{_digest(content)}"')


NAME, PART = r"([\w.-]+/[\w.-]+)", "([^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/models/{NAME}/branch/{PART}", _Handler.create_branch),
    ("POST", f"/api/models/{NAME}/preupload/{PART}", _Handler.prepare_upload),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", _Handler.offer_objects),
    ("PUT", f"/objects/{PART}", _Handler.put_object),
    ("POST", f"/api/models/{NAME}/commit/{PART}", _Handler.commit),
    ("GET", f"/api/models/{NAME}", _Handler.describe),
    ("GET", f"/api/models/{NAME}/revision/{PART}", _Handler.describe),
    ("GET", f"/api/models/{NAME}/tree/{PART}", _Handler.list_files),
    ("GET HEAD", f"/{NAME}/resolve/{PART}/(.+)", _Handler.read_file),
]


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _commit(files: dict[str, bytes]) -> str:
    """Id of a commit with these files."""
    return _digest(b"".join(name.encode() + files[name] for name in sorted(files)))


@contextmanager
def hub_server(
    monkeypatch: pytest.MonkeyPatch, cache: str, large: tuple[str, ...] = ()
) -> Iterator[HubServer]:
    """A running server that huggingface_hub takes for the Hub, with the token of a writer.

    Args:
        monkeypatch: pytest's, of the test.
        cache: Folder of downloads.
        large: Suffixes of files that are uploaded by Git LFS, without hf_xet.
    """
    with HubServer(large) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", cache)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", bool(large))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        try:
            yield server
        finally:
            server.shutdown()

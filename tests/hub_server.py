"""A small Hub on loopback: what the Hugging Face clients need to publish, download and stream, kept in memory.

`HubServer` is the server, `hub_server` the pytest fixture. huggingface_hub reads `HF_ENDPOINT` when it is imported, so
clients run in a subprocess with `HubServer.environment(home)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".tar", ".wav", ".flac")
LFS_BYTES = 1 << 20  # larger files go through LFS whatever they are called
REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
REV = r"(?P<revision>[^/]+)"
PAGE = r"(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)"


class HubError(Exception):
    """An answer other than success: `status`, and the code that the client turns into an exception class."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Git's name of a plain file."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def describe(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


class Repository:
    """Branches, each a list of commits, oldest first."""

    def __init__(self, private: bool):
        self.private = private
        self.branches: dict[str, list[Commit]] = {"main": [self.next_commit([], "initial commit", {})]}

    @staticmethod
    def next_commit(before: list[Commit], title: str, files: dict[str, Blob]) -> Commit:
        content = [before[-1].oid if before else "", title, sorted((path, blob.etag) for path, blob in files.items())]
        return Commit(hashlib.sha1(json.dumps(content).encode()).hexdigest(), title, files)

    def history(self, revision: str) -> list[Commit]:
        """Commits up to a branch's head or a commit's name."""
        if revision in self.branches:
            return self.branches[revision]
        for commits in self.branches.values():
            for index, commit in enumerate(commits):
                if commit.oid == revision:
                    return commits[: index + 1]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class HubServer:
    """The Hub's contents and the thread that serves them.

    Attributes:
        endpoint: What `HF_ENDPOINT` must be.
        token: The one token that may write.
        user: Its user, in whose namespace repositories are made.
        requests: Method, path and `Range` header of each request, in order.
        read_only: Answer 403 to commits.
        cut: Close the connection at commits, without an answer.
        damaged: Paths that are served with another first byte.
        repositories: By ("models" | "datasets" | "spaces", "owner/name").
    """

    def __init__(self, user: str = "tester", token: str = "hf_loopback"):
        self.user, self.token = user, token
        self.requests: list[tuple[str, str, str | None]] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}  # by SHA-256
        self.read_only = self.cut = False
        self.damaged: set[str] = set()
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def environment(self, home: str | os.PathLike, **more: str) -> dict[str, str]:
        """Environment of a client process: this server, its token, a fresh cache, nothing of other Hubs."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(foreign) and not k.lower().endswith("_proxy")},
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **more,
        }

    def files(self, repo: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """Files of a repository by path."""
        head = self.repository(kind, repo).history(revision)[-1]
        return {path: blob.content for path, blob in head.files.items()}

    def repository(self, kind: str, repo: str, may_see_private: bool = True) -> Repository:
        found = self.repositories.get((kind, repo))
        if found is None or (found.private and not may_see_private):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return found


def goes_to_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_BYTES)


class HubHandler(BaseHTTPRequestHandler):
    """Routes: method, pattern of the path, name of the method that answers; groups become its arguments."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", rf"/api/{REPO}/preupload/{REV}", "preupload"),
        ("POST", rf"/api/{REPO}/commit/{REV}", "commit"),
        ("POST", rf"/api/{REPO}/branch/{REV}", "create_branch"),
        ("POST", rf"/api/{REPO}/paths-info/{REV}", "paths_info"),
        ("GET", rf"/api/{REPO}/tree/{REV}(?:/(?P<folder>.*))?", "tree"),
        ("GET", rf"/api/{REPO}/refs", "refs"),
        ("GET", rf"/api/{REPO}/commits/{REV}", "commits"),
        ("GET", rf"/api/{REPO}(?:/revision/{REV})?", "info"),
        ("POST", rf"/{PAGE}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("GET", rf"/{PAGE}/resolve/{REV}/(?P<path>.+)", "resolve"),
    )

    def do_GET(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, url.path, self.headers.get("Range")))
        try:
            for route_method, pattern, name in self.routes:
                match = re.fullmatch(pattern, url.path)
                if match and method == route_method:
                    groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.hub.lock:
                        getattr(self, name)(**groups)
                    return
            raise HubError(404, f"No such page: {url.path}")
        except HubError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)} if error.code else {}
            self.answer({"error": str(error)}, error.status, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args) -> None:
        """Quiet: `HubServer.requests` records what came."""

    def answer(self, content: dict | list | bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def require_token(self) -> None:
        if not self.authorized():
            raise HubError(401, "Invalid username or password.")

    def repository(self, kind: str, repo: str) -> Repository:
        return self.hub.repository(kind, repo, self.authorized())

    def whoami(self) -> None:
        self.require_token()
        token = {"displayName": "loopback", "role": "write"}
        self.answer({"type": "user", "name": self.hub.user, "orgs": [], "auth": {"accessToken": token}})

    def create(self) -> None:
        self.require_token()
        wanted = json.loads(self.body)
        kind = (wanted.get("type") or "model") + "s"
        repo = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}"
        if (kind, repo) in self.hub.repositories:
            self.answer({"error": "You already created this repo", "url": url, "name": repo}, 409)
            return
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.hub.repositories[kind, repo] = Repository(private)
        self.answer({"url": url, "name": repo, "id": repo})

    def create_branch(self, kind: str, repo: str, revision: str) -> None:
        self.require_token()
        repository = self.repository(kind, repo)
        if revision in repository.branches:
            raise HubError(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[revision] = list(repository.history(start))
        self.answer({})

    def validate_yaml(self) -> None:
        """As the real one does: a card's header must be YAML, and one without a header earns a warning."""
        header = re.match(r"\s*---\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        try:
            data = yaml.safe_load(header.group(1)) if header else None
        except yaml.YAMLError as error:
            self.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        self.answer({"errors": [], "warnings": warnings})

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        self.require_token()
        head = self.repository(kind, repo).history(revision)[-1]
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if goes_to_lfs(file["path"], file["size"]) else "regular"
            known = head.files[file["path"]].etag if file["path"] in head.files else None
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self.answer({"files": answers})

    def lfs_batch(self, repo: str, kind: str = "models") -> None:
        self.require_token()
        self.repository(kind, repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
            objects.append(wanted if wanted["oid"] in self.hub.lfs else {**wanted, "actions": upload})
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "Content does not have the announced SHA-256")
        self.hub.lfs[oid] = self.body
        self.answer({})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        self.require_token()
        if self.hub.cut:
            self.close_connection = True
            return
        if self.hub.read_only:
            raise HubError(403, "You need the role write for this repository")
        repository = self.repository(kind, repo)
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        pull_request = None
        if self.query.get("create_pr", ["0"])[0] in ("1", "true"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            start, revision = repository.branches[revision], f"refs/pr/{number}"
            repository.branches[revision] = list(start)
            pull_request = f"{self.hub.endpoint}/{repo}/discussions/{number}"
        commits = repository.branches[revision]
        files, title = dict(commits[-1].files), ""
        for line in filter(None, self.body.split(b"\n")):
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", commits[-1].oid) != commits[-1].oid:
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise HubError(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = Blob(self.hub.lfs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
        commits.append(repository.next_commit(commits, title, files))
        url = f"{self.hub.endpoint}/{repo}/commit/{commits[-1].oid}"
        found = {"success": True, "commitOid": commits[-1].oid, "commitUrl": url, "hookOutput": ""}
        self.answer(found if pull_request is None else {**found, "pullRequestUrl": pull_request})

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        repository = self.repository(kind, repo)
        head = repository.history(revision)[-1]
        siblings = [{"rfilename": path, "size": len(blob.content)} for path, blob in head.files.items()]
        facts = {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        names = {"id": repo, "author": repo.split("/")[0], "sha": head.oid, "lastModified": head.date, "tags": []}
        self.answer({**names, **facts, "siblings": siblings})

    def tree(self, kind: str, repo: str, revision: str, folder: str = "") -> None:
        files = self.repository(kind, repo).history(revision)[-1].files
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = folder.rstrip("/") + "/" if folder else ""
        inside = {path: blob for path, blob in files.items() if path.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        folders = {parent for path in inside for parent in parents(path) if parent.startswith(prefix)}
        entries = [describe_folder(name) for name in sorted(folders)]
        entries += [blob.describe(path) for path, blob in sorted(inside.items())]
        self.answer([entry for entry in entries if recursive or "/" not in entry["path"][len(prefix) :]])

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        files = self.repository(kind, repo).history(revision)[-1].files
        folders = {parent for path in files for parent in parents(path)}
        paths = parse_qs(self.body.decode()).get("paths", [])
        found = [files[path].describe(path) for path in paths if path in files]
        self.answer(found + [describe_folder(path) for path in paths if path in folders])

    def refs(self, kind: str, repo: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
            for name, commits in self.repository(kind, repo).branches.items()
        ]
        self.answer({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def commits(self, kind: str, repo: str, revision: str) -> None:
        history = self.repository(kind, repo).history(revision)
        shared = {"message": "", "authors": [{"user": self.hub.user}]}
        self.answer([{"id": one.oid, "title": one.title, "date": one.date, **shared} for one in reversed(history)])

    def resolve(self, repo: str, revision: str, path: str, kind: str = "models") -> None:
        head = self.repository(kind, repo).history(revision)[-1]
        if path not in head.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        blob = head.files[path]
        if path in self.hub.damaged:
            blob = Blob(bytes([blob.content[0] ^ 1]) + blob.content[1:], blob.lfs)
        headers = {"X-Repo-Commit": head.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if blob.lfs:
            headers |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-Etag": f'"{blob.etag}"'}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(blob.content, headers=headers)
            return
        start, end = byte_range(*wanted.groups(), size=len(blob.content))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(blob.content)}"
        self.answer(blob.content[start:end], 206, headers)


def byte_range(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and end (exclusive) of a `Range: bytes=first-last` header; `bytes=-n` are the last n bytes."""
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), min(size, int(last) + 1) if last else size
    if start >= end:
        raise HubError(416, f"Range {first}-{last} is not in a file of {size} bytes")
    return start, end


def parents(path: str) -> list[str]:
    return [parent.as_posix() for parent in PurePosixPath(path).parents if parent.as_posix() != "."]


def describe_folder(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A Hub of its own for a test: `hub_server.endpoint`, `.token`, `.environment(home)`."""
    with HubServer() as server:
        yield server


__all__ = ["HubServer", "hub_server"]

"""A Hugging Face Hub for tests: the part of its HTTP API that pushing, pulling and pinning a model needs.

Uploads go over plain git-LFS "basic" transfer (no xet), so clients run with ``HF_HUB_DISABLE_XET=1``; ``LocalHub.env``
has that and the rest of a client's environment, which must be set before huggingface_hub is imported. Everything is
kept in memory. Faults are injected by appending to ``LocalHub.faults``; ``LocalHub.calls`` records every request.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote, urlsplit

from .card_validation import as_list, card_metadata, card_problems
from .fault import Fault
from .repository import ApiError, Blob, Repository, lfs_blob, regular_blob
from .transport import FaultyHandler, Reply

TOKEN, USER = "hf_localtesttoken", "user"
LFS_PATTERNS = [
    f"*.{kind}" for kind in ("safetensors", "bin", "pt", "pth", "ckpt", "onnx", "npz", "npy", "pkl", "zip")
]
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
JSON = {"Content-Type": "application/json; charset=utf-8"}


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return Reply(json.dumps(value).encode(), status, JSON | (headers or {}))


class LocalHub:
    """``with LocalHub() as hub: subprocess.run([...], env=os.environ | hub.env(empty_folder))``"""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # sha256 -> bytes
        self.calls: list[tuple[str, str, int]] = []  # method, path, status (0: no reply was sent)
        self.faults: list[Fault] = []
        self.revoked = False
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Api,), {"hub": self}))
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.cdn = f"http://localhost:{port}/_cdn"  # another origin: there the client must drop its token

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def env(self, hf_home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment of a client process whose cache is `hf_home`."""
        env = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return env | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})

    def store(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects[sha256] = data
        return sha256

    def regular_file(self, data: bytes) -> Blob:
        self.store(data)
        return regular_blob(data)

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        return self.objects[self.repositories[repo_id].tree(revision)[path].sha256]

    def files(self, repo_id: str, revision: str = "main") -> list[str]:
        return sorted(self.repositories[repo_id].tree(revision))

    def head(self, repo_id: str) -> str:
        return self.repositories[repo_id].resolve("main")

    def next_fault(self, request: str) -> Fault:
        with self.lock:
            fault = next((fault for fault in self.faults if fault.strikes(request)), Fault("none", request))
            self.revoked |= fault.kind == "revoke"
            return fault

    def record(self, method: str, path: str, status: int) -> None:
        with self.lock:
            self.calls.append((method, path, status))


def file_json(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid, "size": blob.size}
    return entry | ({"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}} if blob.lfs else {})


def is_ignored(name: str, patterns: list[str]) -> bool:
    """Whether the last matching pattern of a .gitignore excludes `name`."""
    matching = [pattern for pattern in patterns if fnmatch.fnmatch(name, pattern.removeprefix("!"))]
    return bool(matching) and not matching[-1].startswith("!")


def is_lfs(name: str, sample: bytes, size: int) -> bool:
    """By name, by size, or because the first bytes are no text (a sample may end inside a character)."""
    try:
        sample.decode()
        binary = b"\0" in sample
    except UnicodeDecodeError as error:
        binary = error.start < len(sample) - 4
    return binary or size > 10 * 2**20 or any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)


class Api(FaultyHandler):
    hub: LocalHub

    REPO = r"(?P<repo_id>[^/]+/[^/]+)"
    ROUTES: ClassVar[list[tuple[str, str, str]]] = [  # method, regex on the still quoted path, method of this class
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create_repo"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("GET", f"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("GET", f"/api/models/{REPO}/refs", "refs"),
        ("POST", f"/api/models/{REPO}/preupload/(?P<branch>[^/]+)", "preupload"),
        ("POST", f"/api/models/{REPO}/commit/(?P<branch>[^/]+)", "commit"),
        ("POST", f"/api/models/{REPO}/tag/(?P<revision>[^/]+)", "tag"),
        ("DELETE", f"/api/models/{REPO}/tag/(?P<tag>[^/]+)", "delete_tag"),
        ("POST", f"/api/models/{REPO}/branch/(?P<branch>[^/]+)", "create_branch"),
        ("DELETE", f"/api/models/{REPO}/branch/(?P<branch>[^/]+)", "delete_branch"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", "/_lfs/(?P<sha256>[0-9a-f]{64})", "lfs_put"),
        ("POST", "/_lfs/(?P<sha256>[0-9a-f]{64})/verify", "lfs_verify"),
        ("GET", "/_cdn/(?P<sha256>[0-9a-f]{64})", "cdn"),
        ("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def answer(self) -> Reply:
        method = "GET" if self.command == "HEAD" else self.command
        path = urlsplit(self.path).path
        try:
            for verb, pattern, name in self.ROUTES:
                if verb == method and (match := re.fullmatch(pattern, path)):
                    arguments = {key: unquote(value) for key, value in match.groupdict().items() if value}
                    return getattr(self, name)(**arguments)
            raise ApiError(404, f"The local Hub does not serve {method} {path}")
        except ApiError as error:
            headers = {"X-Error-Message": str(error), "X-Error-Code": error.code, "X-Repo-Commit": error.commit}
            present = {key: value for key, value in headers.items() if value}
            return json_reply({"error": str(error)}, error.status, present)

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    # Who asks, and for which repository.

    def has_token(self) -> bool:
        header = self.headers.get("Authorization")
        if header and (self.hub.revoked or header != f"Bearer {TOKEN}"):
            raise ApiError(401, "Invalid credentials in Authorization header")
        return bool(header)

    def require_token(self) -> None:
        if not self.has_token():
            raise ApiError(401, "Invalid username or password.")

    def repository(self, repo_id: str) -> Repository:
        authorized = self.has_token()
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not authorized):
            raise ApiError(404 if authorized else 401, "Repository not found", "RepoNotFound")
        return repository

    def whoami(self) -> Reply:
        self.require_token()
        return json_reply({"type": "user", "id": "0", "name": USER, "fullname": USER, "orgs": [], "auth": {}})

    def create_repo(self) -> Reply:
        self.require_token()
        owner = self.json.get("organization") or USER
        repo_id = f"{owner}/{self.json['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if owner != USER:
            raise ApiError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if repo_id in self.hub.repositories:
            return json_reply(url | {"error": "You already created this model repo"}, 409)
        repository = Repository(repo_id, private=self.json.get("visibility") == "private")
        repository.commit({".gitattributes": self.hub.regular_file(GITATTRIBUTES)}, "initial commit")
        self.hub.repositories[repo_id] = repository
        return json_reply(url)

    # Writing.

    def validate_yaml(self) -> Reply:
        errors, warnings = card_problems(self.json["content"])
        listed = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        return json_reply(listed, 400 if errors else 200)

    def preupload(self, repo_id: str, branch: str) -> Reply:
        self.require_token()
        tree = self.repository(repo_id).tree(branch)
        ignored = [line for line in (self.json.get("gitIgnore") or "").split() if not line.startswith("#")]
        files = []
        for file in self.json["files"]:
            path, old = file["path"], tree.get(file["path"])
            name = path.split("/")[-1]
            lfs = is_lfs(name, base64.b64decode(file["sample"]), file["size"])
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if lfs else "regular",
                    "oid": (old.sha256 if old.lfs else old.oid) if old else None,
                    "shouldIgnore": is_ignored(name, ignored),
                }
            )
        return json_reply({"files": files})

    def lfs_batch(self, repo_id: str) -> Reply:
        self.require_token()
        self.repository(repo_id)
        objects = []
        for entry in self.json["objects"]:
            if entry["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/_lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        return json_reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, sha256: str) -> Reply:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise ApiError(400, "sha256 mismatch")
        self.hub.store(self.body)
        return Reply(b"")

    def lfs_verify(self, sha256: str) -> Reply:
        self.require_token()
        if sha256 not in self.hub.objects:
            raise ApiError(404, "Object does not exist")
        return json_reply({})

    def commit(self, repo_id: str, branch: str) -> Reply:
        self.require_token()
        repository = self.repository(repo_id)
        tree, title = dict(repository.tree(branch)), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repository.resolve(branch)):
                    raise ApiError(412, "A commit has happened since. Please refresh and try again.")
            else:
                self.apply(item["key"], value, tree)
        oid = repository.commit(tree, title, branch)
        return json_reply({"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{oid}"})

    def apply(self, operation: str, value: dict[str, Any], tree: dict[str, Blob]) -> None:
        path = value["path"]
        if operation == "file":
            data = base64.b64decode(value["content"])
            if path == "README.md" and (errors := card_problems(data.decode())[0]):
                raise ApiError(400, errors[0])
            tree[path] = self.hub.regular_file(data)
        elif operation == "lfsFile":
            if value["oid"] not in self.hub.objects:
                raise ApiError(400, f"LFS object {value['oid']} was not uploaded")
            tree[path] = lfs_blob(value["oid"], len(self.hub.objects[value["oid"]]))
        elif operation == "deletedFile":
            if tree.pop(path, None) is None:
                raise ApiError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise ApiError(400, f"The local Hub knows no commit operation {operation!r}")

    def tag(self, repo_id: str, revision: str) -> Reply:
        self.require_token()
        repository = self.repository(repo_id)
        repository.add(f"refs/tags/{self.json['tag']}", repository.resolve(revision))
        return json_reply({})

    def delete_tag(self, repo_id: str, tag: str) -> Reply:
        self.require_token()
        self.repository(repo_id).remove(f"refs/tags/{tag}")
        return json_reply({})

    def create_branch(self, repo_id: str, branch: str) -> Reply:
        self.require_token()
        repository = self.repository(repo_id)
        repository.add(f"refs/heads/{branch}", repository.resolve("main"))
        return json_reply({})

    def delete_branch(self, repo_id: str, branch: str) -> Reply:
        self.require_token()
        self.repository(repo_id).remove(f"refs/heads/{branch}")
        return json_reply({})

    # Reading.

    def info(self, repo_id: str, revision: str = "main") -> Reply:
        repository = self.repository(repo_id)
        tree, oid = repository.tree(revision), repository.resolve(revision)
        card = card_metadata(self.hub.read(repo_id, "README.md", revision).decode()) if "README.md" in tree else {}
        return json_reply(
            {
                "_id": "0",
                "id": repo_id,
                "modelId": repo_id,
                "sha": oid,
                "private": repository.private,
                "tags": as_list(card.get("tags")),
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "cardData": card,
                "siblings": [{"rfilename": path} for path in sorted(tree)],
            }
        )

    def refs(self, repo_id: str) -> Reply:
        refs = self.repository(repo_id).refs
        named: dict[str, list[dict[str, str]]] = {"heads": [], "tags": []}
        for ref, oid in refs.items():
            kind, name = ref.removeprefix("refs/").split("/", 1)
            named[kind].append({"name": name, "ref": ref, "targetCommit": oid})
        return json_reply({"branches": named["heads"], "tags": named["tags"], "converts": []})

    def tree(self, repo_id: str, revision: str, path: str = "") -> Reply:
        repository = self.repository(repo_id)
        prefix = f"{path}/" if path else ""
        found = {name: blob for name, blob in sorted(repository.tree(revision).items()) if name.startswith(prefix)}
        if prefix and not found:
            raise ApiError(404, f"{path} does not exist", "EntryNotFound", repository.resolve(revision))
        return json_reply([file_json(name, blob) for name, blob in found.items()])

    def resolve(self, repo_id: str, revision: str, path: str) -> Reply:
        repository = self.repository(repo_id)
        oid = repository.resolve(revision)
        blob = repository.tree(revision).get(path)
        if blob is None:
            raise ApiError(404, "Entry not found", "EntryNotFound", oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.oid}"'}
        if not blob.lfs:
            return self.file(blob.sha256, headers)
        location = f"{self.hub.cdn}/{blob.sha256}?filename={quote(path.split('/')[-1])}"
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "Location": location}
        return Reply(b"", 302, headers | linked)

    def cdn(self, sha256: str) -> Reply:
        if self.headers.get("Authorization"):
            raise ApiError(400, "the client sent its token to the CDN")
        return self.file(sha256, {"ETag": f'"{sha256}"'})

    def file(self, sha256: str, headers: dict[str, str]) -> Reply:
        data = self.hub.objects[sha256]
        headers = headers | {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not match:
            return Reply(data, 200, headers)
        start, end = int(match.group(1)), min(int(match.group(2) or len(data)), len(data) - 1)
        content_range = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
        return Reply(data[start : end + 1], 206, headers | content_range)

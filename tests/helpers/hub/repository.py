"""A repository of the local Hub: commits, each a whole tree of files, and the refs that name them."""

import datetime
import hashlib
import json
from dataclasses import dataclass, field


class ApiError(Exception):
    """A refusal in the Hub's own terms: status, `X-Error-Code`, and the commit the path was looked up in."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


@dataclass(frozen=True)
class Blob:
    """One stored file. `oid` is git's own hash: of the bytes, or of the LFS pointer that stands for them."""

    sha256: str
    size: int
    oid: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    tree: dict[str, Blob]
    parent: str | None
    title: str
    date: str


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def regular_blob(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data), git_oid(data), lfs=False)


def lfs_blob(sha256: str, size: int) -> Blob:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Blob(sha256, size, git_oid(pointer.encode()), lfs=True)


@dataclass
class Repository:
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "refs/heads/main" -> commit oid

    def resolve(self, revision: str) -> str:
        """Branch, tag or commit oid -> commit oid."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.refs[ref]
        if revision in self.commits:
            return revision
        raise ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, revision: str = "main") -> dict[str, Blob]:
        return self.commits[self.resolve(revision)].tree

    def add(self, ref: str, oid: str) -> None:
        if ref in self.refs:
            raise ApiError(409, f"Reference already exists: {ref}")
        self.refs[ref] = oid

    def remove(self, ref: str) -> None:
        if self.refs.pop(ref, None) is None:
            raise ApiError(404, f"Reference does not exist: {ref}", "RevisionNotFound")

    def commit(self, tree: dict[str, Blob], title: str, branch: str = "main") -> str:
        """Moves the branch on to a new commit."""
        parent = self.refs.get(f"refs/heads/{branch}")
        files = {path: blob.oid for path, blob in tree.items()}
        content = json.dumps([self.id, files, parent, title, len(self.commits)])
        oid = hashlib.sha1(content.encode()).hexdigest()
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[oid] = Commit(tree, parent, title, date)
        self.refs[f"refs/heads/{branch}"] = oid
        return oid

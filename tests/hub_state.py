"""What the stand-in for the Hub knows: users, repositories, commits and objects; no HTTP.

`HubServer` of hub_server.py answers requests from it.
"""
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple

import yaml

LFS_SUFFIXES = ('.safetensors', '.bin', '.pt', '.pth', '.npz', '.zip')


class Answer(Exception):
    """What is sent back, bytes or JSON: returned on success, raised to refuse."""

    def __init__(self, data: Any = None, status: int = 200, headers: dict | None = None):
        super().__init__(status, data)
        self.body = data if isinstance(data, bytes) else json.dumps(data, default=str).encode()
        self.status = status
        self.headers = headers or {}


def refusal(status: int, message: str, code: str | None = None, headers: dict | None = None, **fields) -> Answer:
    """An error in the Hub's form; `fields` are added to its JSON object."""
    line = ' '.join(message.encode('ascii', 'replace').decode().split())
    headers = {'X-Error-Message': line, **({'X-Error-Code': code} if code else {}), **(headers or {})}
    return Answer({'error': message, **fields}, status, headers)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    """Whether a file is stored as an LFS object: by suffix, by size, or as binary by a NUL among its first bytes."""
    return path.endswith(LFS_SUFFIXES) or size > 10 * 2 ** 20 or b'\0' in sample[:512]


class User(NamedTuple):
    name: str
    role: str
    orgs: tuple[str, ...]


class Commit(NamedTuple):
    """A whole snapshot: every file's full content by path; `lfs` holds the paths stored as LFS objects."""
    oid: str
    parent: str | None
    message: str
    files: dict[str, bytes]
    lfs: set[str]
    author: str
    date: str

    def content_id(self, path: str) -> str:
        """sha256 of an LFS object, git's id of any other file."""
        return (sha256 if path in self.lfs else git_oid)(self.files[path])

    def entry(self, path: str) -> dict:
        """What the Hub tells about a file."""
        entry = {'type': 'file', 'path': path, 'size': len(self.files[path]), 'oid': self.content_id(path)}
        if path in self.lfs:
            oid, size = entry['oid'], entry['size']
            pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n'.encode()
            entry['lfs'] = {'oid': oid, 'sha256': oid, 'size': size, 'pointerSize': len(pointer)}
            entry['oid'] = git_oid(pointer)
        return entry


@dataclass
class Repo:
    """A repository: all its commits, oldest first, and commit ids by branch, by tag and by 'refs/pr/N'."""
    name: str
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)  # among the names of the pull requests

    @property
    def head(self) -> str | None:
        return self.branches.get('main')

    @property
    def files(self) -> dict[str, bytes]:
        return self.find('main').files

    def find(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or full id."""
        oid = {**self.pulls, **self.tags, **self.branches}.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')

    def add(self, ref: str, parent: str | None, files: dict, lfs: set, message: str, author: str) -> Commit:
        """Put a snapshot on top of a commit and let the ref name it."""
        oid = git_oid(repr((self.name, len(self.commits), parent, message, sorted(files.items()))).encode())
        date = datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.000Z')
        self.commits.append(Commit(oid, parent, message, files, lfs & set(files), author, date))
        (self.pulls if ref.startswith('refs/pr/') else self.branches)[ref] = oid
        return self.commits[-1]


class State:
    """Users by token, repositories by name, LFS objects by sha256."""

    def __init__(self):
        self.url = self.storage_url = ''
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.lock = threading.RLock()

    def add_user(self, token: str, name: str, role: str = 'write', orgs: tuple[str, ...] = ()) -> None:
        """Make a token valid; its role is 'write' or 'read'."""
        self.users[token] = User(name, role, tuple(orgs))

    def repo(self, name: str) -> Repo | None:
        return self.repos.get(name)

    def create(self, name: str, private: bool = False) -> Repo:
        """A new repository with the first commit, which the Hub makes itself."""
        repo = self.repos[name] = Repo(name, private)
        rules = ''.join(f'*{suffix} filter=lfs diff=lfs merge=lfs -text\n' for suffix in LFS_SUFFIXES)
        repo.add('main', None, {'.gitattributes': rules.encode()}, set(), 'initial commit', 'system')
        return repo

    def commit(self, name: str, files: dict, message: str = 'Made elsewhere', revision: str = 'main') -> str:
        """Commit as somebody else: None deletes a file, a missing repository is created. Returns the new id."""
        with self.lock:
            repo = self.repos.get(name) or self.create(name)
            base = repo.find(revision)
            kept = {path: data for path, data in {**base.files, **files}.items() if data is not None}
            lfs = {path for path in files if path in kept and is_lfs(path, kept[path], len(kept[path]))}
            self.lfs.update({sha256(kept[path]): kept[path] for path in lfs})
            return repo.add(revision, base.oid, kept, (base.lfs - set(files)) | lfs, message, 'somebody').oid


def read_card(readme: bytes) -> tuple[dict, list[str]]:
    """The metadata of a README, and what the Hub would refuse in it as far as this stand-in knows."""
    found = re.match(r'---\r?\n(.*?)^---\s*$', readme.decode(errors='replace'), re.DOTALL | re.MULTILINE)
    try:
        card = found and yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        return {}, [f'YAML Metadata Error: {error}']
    if not isinstance(card, dict):
        return {}, ['The metadata must be an object']
    errors = []
    for name in {'license', 'library_name', 'pipeline_tag', 'base_model', 'datasets', 'tags', 'metrics'} & set(card):
        several = isinstance(card[name], list) and name not in ('license', 'library_name', 'pipeline_tag')
        values = card[name] if several else [card[name]]
        errors += [f'"{name}" must be a string' for value in values if not isinstance(value, str)]
        errors += [f'"{name}" is not allowed to be empty' for value in values if value == '']

    def need(place, part, *names):
        errors.extend(f'"{place}.{name}" is required' for name in names if (part or {}).get(name) in (None, '', []))

    try:
        for model in card.get('model-index') or []:
            need('model-index', model, 'name', 'results')
            for result in model.get('results') or []:
                need('results', result, 'task', 'dataset', 'metrics')
                need('results.task', result.get('task'), 'type')
                need('results.dataset', result.get('dataset'), 'type', 'name')
                for metric in result.get('metrics') or []:
                    need('results.metrics', metric, 'type', 'value')
    except (AttributeError, TypeError):
        errors.append('"model-index" has the wrong form')
    return card, errors

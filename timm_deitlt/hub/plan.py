"""What a repository holds, what is here, and what one commit would change; how publishing ends."""
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub.utils.sha import git_hash

# Weights in other forms, of which timm would take one where it cannot get ours, and what this tool wrote before
_STALE = (
    '*.bin', '*.pt', '*.pth', '*.pth.tar', '*.ckpt', '*.pkl', '*.pickle', '*.msgpack', '*.h5', '*.safetensors',
    '*.safetensors.index.json', '*.bin.index.json')
_OURS = ('config.json', 'metrics.json', 'args.yaml', 'plots/*.png')


class Exit(IntEnum):
    """Exit codes of publishing."""
    DONE = 0
    BAD_INPUT = 2
    NO_TOKEN = 3
    BAD_TOKEN = 4
    FORBIDDEN = 5
    DIFFERENT = 6
    CHANGED = 7
    QUOTA = 8
    RATE = 9
    SERVER = 10
    NETWORK = 11
    UNVERIFIED = 12
    REFUSED = 13
    NOT_TAGGED = 14
    INTERRUPTED = 130


# By the kinds of `hub.HubFailure`
EXITS = {
    'offline': Exit.NETWORK, 'network': Exit.NETWORK, 'no_token': Exit.NO_TOKEN, 'bad_token': Exit.BAD_TOKEN,
    'forbidden': Exit.FORBIDDEN, 'gated': Exit.FORBIDDEN, 'missing': Exit.FORBIDDEN, 'stale': Exit.CHANGED,
    'quota': Exit.QUOTA, 'rate': Exit.RATE, 'server': Exit.SERVER, 'refused': Exit.REFUSED, 'other': Exit.BAD_INPUT,
}


class PublishError(Exception):
    """What ends publishing: an exit code and a line for the user."""

    def __init__(self, code: Exit, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class LocalFile:
    """A file to publish; `blob` is the name git gives its content."""
    path: Path
    size: int
    sha256: str
    blob: str

    def is_same(self, remote: str | None) -> bool:
        """Whether the Hub's name of a content is that of this file."""
        return remote in (self.sha256, self.blob)


@dataclass(frozen=True)
class Remote:
    """What a revision of a repository holds: of each file the sha256 if it is large, else git's name of its content."""
    exists: bool
    private: bool = False
    head: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What one commit would change."""
    add: list[str]
    delete: list[str]
    keep: list[str]

    @classmethod
    def between(cls, remote: Remote, local: Mapping[str, LocalFile]) -> 'Plan':
        """What makes `remote` hold `local`, and no weights but those; other files are kept."""
        stale = {
            name for name in remote.files
            if name not in local and (is_weights(name) or any(fnmatch(name, pattern) for pattern in _OURS))}
        return cls(
            add=[name for name, file in local.items() if not file.is_same(remote.files.get(name))],
            delete=sorted(stale),
            keep=[name for name in remote.files if name not in local and name not in stale])

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.add and not self.delete


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Files below a folder by their names in the repository."""
    files = {}
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        content = path.read_bytes()
        files[path.relative_to(folder).as_posix()] = LocalFile(
            path, len(content), hashlib.sha256(content).hexdigest(), git_hash(content))
    return files


def is_weights(name: str) -> bool:
    """Whether a file is weights of the model of the repository; those in folders are somebody else's affair."""
    return '/' not in name and any(fnmatch(name, pattern) for pattern in _STALE)

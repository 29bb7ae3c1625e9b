"""A repository of the Hub: what it holds, what one commit would change, and that commit."""
import contextlib
import hashlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.sha import git_hash

from ..models._hub import HUB_ERRORS, UPLOAD_ERRORS, HubFailure, explain
from ..models.weights import CONFIG, WEIGHTS
from .figures import METRICS, better_figures

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')

# Weights in other forms, which timm might load instead of ours
_STALE = (
    '*.bin', '*.pt', '*.pth', '*.pth.tar', '*.ckpt', '*.pkl', '*.pickle', '*.msgpack', '*.h5', '*.safetensors',
    '*.safetensors.index.json', '*.bin.index.json')
_OURS = ('config.json', 'metrics.json', 'args.yaml', 'plots/*.png')
_DAMAGED_TOKEN = 'The token is damaged: no token has such characters. Run `hf auth login` again, or set HF_TOKEN.'
_ATTEMPTS = 5
_LONGEST_WAIT = 8
# Kinds of `HubFailure` after which the same request may succeed
_PASSING = ('server', 'rate', 'network')


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


# By the kinds of `HubFailure`
EXITS = {
    'offline': Exit.NETWORK, 'network': Exit.NETWORK, 'no_token': Exit.NO_TOKEN, 'bad_token': Exit.BAD_TOKEN,
    'forbidden': Exit.FORBIDDEN, 'gated': Exit.FORBIDDEN, 'missing': Exit.FORBIDDEN, 'stale': Exit.CHANGED,
    'quota': Exit.QUOTA, 'rate': Exit.RATE, 'server': Exit.SERVER, 'refused': Exit.REFUSED, 'other': Exit.BAD_INPUT,
}


class PublishError(Exception):
    """What ends publishing: an exit code and one line for the user."""

    def __init__(self, code: Exit, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class LocalFile:
    """A file to publish. `blob` is the name that git gives its content."""
    path: Path
    size: int
    sha256: str
    blob: str

    def is_same(self, remote: str | None) -> bool:
        """Whether the Hub's name of a content is that of this file."""
        return remote in (self.sha256, self.blob)


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Files in a folder and below it, by their names in the repository."""
    files = {}
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        content = path.read_bytes()
        files[path.relative_to(folder).as_posix()] = LocalFile(
            path, len(content), hashlib.sha256(content).hexdigest(), git_hash(content))
    return files


@dataclass(frozen=True)
class Remote:
    """What a revision holds. A large file is known by its sha256, others by the name that git gives their content."""
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
        """The plan after which `remote` holds `local` and no other weights. Files of others are kept."""
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


def is_weights(name: str) -> bool:
    """Whether a file holds weights of the repository's model. Files in folders are left alone."""
    return '/' not in name and any(fnmatch(name, pattern) for pattern in _STALE)


@dataclass(frozen=True)
class Published:
    """A published version: its commit, the revision to download it by, and its page."""
    oid: str
    revision: str
    url: str


class Repository:
    """A repository of a model, and the branch that is published to.

    Args:
        repo_id: 'owner/name'.
        branch: Branch; it is made from main if it is missing.
        create_pr: Open a pull request instead of changing the branch.
    """

    def __init__(self, repo_id: str, branch: str = 'main', create_pr: bool = False):
        self.repo_id, self.branch, self.create_pr = repo_id, branch, create_pr
        try:
            self.token = get_token()
        except UnicodeError as error:
            raise PublishError(Exit.BAD_TOKEN, _DAMAGED_TOKEN) from error
        self.api = HfApi(token=self.token)

    def check_access(self) -> None:
        """Check that the user of the token may write here.

        Raises:
            PublishError: If there is no token, it may not write, or the Hub cannot be reached.
        """
        if constants.HF_HUB_OFFLINE:
            raise PublishError(Exit.NETWORK, 'HF_HUB_OFFLINE is set: unset it to publish.')
        if not self.token:
            raise PublishError(
                Exit.NO_TOKEN, 'No token was found: run `hf auth login`, or set HF_TOKEN, with a token that may write.')
        if not re.fullmatch('[!-~]+', self.token):
            raise PublishError(Exit.BAD_TOKEN, _DAMAGED_TOKEN)
        user = self.ask(self.api.whoami, at_once=True)
        if user.get('auth', {}).get('accessToken', {}).get('role') == 'read':
            raise PublishError(
                Exit.FORBIDDEN, f'The token of {user["name"]} may only read: make a token that may write at '
                                f'{constants.ENDPOINT}/settings/tokens.')
        owner = self.repo_id.split('/')[0]
        owners = [user['name'], *(org['name'] for org in user.get('orgs', []))]
        if owner not in owners and not self.create_pr:
            raise PublishError(
                Exit.FORBIDDEN, f'{user["name"]} cannot publish under {owner}, only under {", ".join(owners)}: give '
                                'one of these owners.')

    def read(self, revision: str | None = None) -> Remote:
        """What the branch, or another revision, holds now. If there is no such branch, what main holds."""
        missing = False
        try:
            info = self.ask(lambda: self.api.model_info(
                self.repo_id, revision=revision or self.branch, files_metadata=True))
        except RepositoryNotFoundError:
            return Remote(False)
        except RevisionNotFoundError:  # the branch will be made from main
            info = self.ask(lambda: self.api.model_info(self.repo_id, files_metadata=True))
            missing = True
        files = {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in info.siblings or []}
        return Remote(
            True, bool(info.private), None if missing else info.sha, files, {} if revision else self._tags())

    def _tags(self) -> dict[str, str]:
        return {tag.name: tag.target_commit for tag in self.ask(lambda: self.api.list_repo_refs(self.repo_id)).tags}

    def plan(self, remote: Remote, local: Mapping[str, LocalFile], replace: bool) -> Plan:
        """What a commit would change.

        Raises:
            PublishError: If it would replace what is published by other weights or by worse figures, and `replace` was
                not given.
        """
        plan = Plan.between(remote, local)
        if not plan.empty and not replace and (differences := self._differences(remote, local)):
            raise PublishError(
                Exit.DIFFERENT,
                f'{self.repo_id} holds another model: {"; ".join(differences)}. Nothing was changed. Give --replace to '
                'publish this model in its place (the old one stays in the history), or give another REPO_ID.')
        return plan

    def _differences(self, remote: Remote, local: Mapping[str, LocalFile]) -> list[str]:
        found = []
        weights = remote.files.get(WEIGHTS)
        others = [name for name in remote.files if is_weights(name)]
        if weights and not local[WEIGHTS].is_same(weights):
            found.append(f'weights {weights[:12]}, here {local[WEIGHTS].sha256[:12]}')
        elif not weights and others:
            found.append(f'weights in {", ".join(others)}')
        elif not weights and 'README.md' in remote.files:
            found.append('a README.md that was not written for such weights')
        was, becomes = self._json(remote, local, CONFIG)
        found += [
            f'{name} {str(was[name])[:60]}, here {str(becomes.get(name))[:60]}'
            for name in ('architecture', 'num_classes', 'label_names')
            if was.get(name) is not None and was[name] != becomes.get(name)]
        better = better_figures(*self._json(remote, local, METRICS))
        return found + ([f'better figures: {", ".join(better[:3])}'] if better else [])

    def _json(self, remote: Remote, local: Mapping[str, LocalFile], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Content of a file there and here; {} if there is none."""
        here = json.loads(local[name].path.read_text()) if name in local else {}
        there = None
        if name in remote.files:
            # the file may be damaged or of another tool; the weights are compared anyway
            with tempfile.TemporaryDirectory() as cache, contextlib.suppress(ValueError):
                there = json.loads(self.download(name, remote.head or 'main', cache).read_text())
        return there if isinstance(there, dict) else {}, here

    def download(self, name: str, revision: str, cache: str) -> Path:
        """A file of a revision, downloaded to a folder."""
        return Path(self.ask(lambda: self.api.hf_hub_download(self.repo_id, name, revision=revision, cache_dir=cache)))

    def commit(self, remote: Remote, local: Mapping[str, LocalFile], replace: bool, message: str) -> Published:
        """Make one commit on top of the version that was read. If its answer is lost, look for it; do not repeat it.

        Raises:
            PublishError: If it could not be made. The repository then holds what it held before.
        """
        if self.create_pr and (found := self.find(local)):
            _logger.info('A pull request with exactly these files exists already.')
            return found
        for attempt in range(_ATTEMPTS):
            plan = self.plan(remote, local, replace)
            if plan.empty:
                return self.at(str(remote.head))
            additions = [CommitOperationAdd(name, str(local[name].path)) for name in plan.add]
            if not attempt:
                self._upload(additions)
            try:
                done = self.api.create_commit(
                    self.repo_id, [*additions, *map(CommitOperationDelete, plan.delete)], commit_message=message,
                    parent_commit=remote.head, revision=self.branch, create_pr=self.create_pr)
                return Published(done.oid, done.pr_revision or done.oid, done.pr_url or done.commit_url)
            except UPLOAD_ERRORS as error:
                failure = explain(error)
                if failure.kind not in (*_PASSING, 'stale'):
                    raise self._stop(failure) from error
                last = attempt + 1 == _ATTEMPTS
                if failure.kind != 'stale' and not last:
                    _wait(error, failure, attempt)
                if found := self.find(local):
                    _logger.info('The commit was made; only its answer was lost.')
                    return found
                if last:
                    raise self._stop(failure) from error
                remote = self.read()
        raise AssertionError('unreachable')

    def _upload(self, additions: list[CommitOperationAdd]) -> None:
        """Send the large files. They stay invisible until the commit, and the client repeats failed requests itself."""
        try:
            self.api.preupload_lfs_files(self.repo_id, additions, revision=self.branch, create_pr=self.create_pr)
        except UPLOAD_ERRORS as error:
            raise self._stop(explain(error)) from error

    def find(self, local: Mapping[str, LocalFile]) -> Published | None:
        """The version or the open pull request that holds these files; None if there is none."""
        if not self.create_pr:
            remote = self.read()
            return self.at(str(remote.head)) if Plan.between(remote, local).empty else None
        refs = self.ask(lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True))
        for pull in sorted(refs.pull_requests or [], key=lambda ref: int(ref.ref.rpartition('/')[2]), reverse=True):
            number = int(pull.ref.rpartition('/')[2])
            if Plan.between(self.read(pull.ref), local).empty and self._is_open(number):
                url = f'{constants.ENDPOINT}/{self.repo_id}/discussions/{number}'
                return Published(pull.target_commit, pull.ref, url)
        return None

    def _is_open(self, number: int) -> bool:
        pull = self.ask(lambda: self.api.get_discussion_details(self.repo_id, number))
        return pull.status not in ('closed', 'merged')

    def at(self, head: str) -> Published:
        """The version of a commit."""
        return Published(head, head, f'{constants.ENDPOINT}/{self.repo_id}/tree/{head}')

    def tag(self, name: str, oid: str) -> None:
        """Tag a commit, unless it has this tag already."""
        tags = self._tags()
        if name not in tags:
            self.ask(lambda: self.api.create_tag(self.repo_id, tag=name, revision=oid, exist_ok=True))
            tags = self._tags()
        if tags.get(name) != oid:
            raise PublishError(
                Exit.BAD_INPUT, f'The tag {name} is on another commit, {tags.get(name)}, and is never moved: give '
                                'another --tag.')

    def ask(self, request: Callable[[], _T], at_once: bool = False) -> _T:
        """Answer of a request that may be repeated. With `at_once`, do not wait if there is no network."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except (RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except HUB_ERRORS as error:
                failure = explain(error)
                passing = failure.kind in _PASSING and not (at_once and failure.kind == 'network')
                if not passing or attempt + 1 == _ATTEMPTS:
                    raise self._stop(failure) from error
                _wait(error, failure, attempt)
        raise AssertionError('unreachable')

    def _stop(self, failure: HubFailure) -> PublishError:
        return PublishError(EXITS[failure.kind], f'{self.repo_id}: {failure.words}.')


def _wait(error: BaseException, failure: HubFailure, attempt: int) -> None:
    headers = getattr(getattr(error, 'response', None), 'headers', {})
    told = re.fullmatch(r'\s*(\d+)\s*', headers.get('Retry-After', '')) or re.search(
        r';\s*t=(\d+)', headers.get('RateLimit', ''))
    seconds = int(told[1]) if told else min(2 ** attempt, _LONGEST_WAIT)
    _logger.warning(f'{failure.words[0].upper()}{failure.words[1:]}: trying again in {seconds} s.')
    time.sleep(seconds)

"""A repository of the Hub: read, changed in one commit, and verified."""
import contextlib
import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..models._hub import HUB_ERRORS, UPLOAD_ERRORS, HubFailure, explain, file_sha256
from ..models.weights import CONFIG, WEIGHTS
from .export import fixed_images, load_back, logits
from .figures import METRICS, better_figures
from .plan import EXITS, Exit, LocalFile, Plan, PublishError, Remote, is_weights

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')

_UNREADABLE = 'The token is damaged, it has characters that no token has: run `hf auth login` again, or set HF_TOKEN.'
_ATTEMPTS = 5
_LONGEST_WAIT = 8
_PASSING = ('server', 'rate', 'network')


@dataclass(frozen=True)
class Published:
    """Where a version is: the commit, the revision to download it by, and its page."""
    oid: str
    revision: str
    url: str


class Repository:
    """A repository of models and the branch that is published to.

    Args:
        repo_id: 'owner/name'.
        branch: Branch, made from main where it is missing.
        create_pr: Open a pull request instead of changing the branch.
    """

    def __init__(self, repo_id: str, branch: str = 'main', create_pr: bool = False):
        self.repo_id, self.branch, self.create_pr = repo_id, branch, create_pr
        try:
            self.token = get_token()
        except UnicodeError as error:
            raise PublishError(Exit.BAD_TOKEN, _UNREADABLE) from error
        self.api = HfApi(token=self.token)

    def check_access(self) -> str:
        """Name of the user of the token, which must be allowed to write here.

        Raises:
            PublishError: If there is no token, or it may not write, or the Hub cannot be reached.
        """
        if constants.HF_HUB_OFFLINE:
            raise PublishError(Exit.NETWORK, 'HF_HUB_OFFLINE is set: unset it to publish.')
        if not self.token:
            raise PublishError(
                Exit.NO_TOKEN, 'No token was found: run `hf auth login`, or set HF_TOKEN, with a token that may write.')
        if not re.fullmatch('[!-~]+', self.token):
            raise PublishError(Exit.BAD_TOKEN, _UNREADABLE)
        user = self._ask(self.api.whoami, at_once=True)
        role = user.get('auth', {}).get('accessToken', {}).get('role')
        if role == 'read':
            raise PublishError(
                Exit.FORBIDDEN,
                f'The token of {user["name"]} may only read: make one that may write at {constants.ENDPOINT}'
                '/settings/tokens.')
        owner = self.repo_id.split('/')[0]
        owners = [user['name'], *(org['name'] for org in user.get('orgs', []))]
        if owner not in owners and not self.create_pr:
            raise PublishError(
                Exit.FORBIDDEN,
                f'{user["name"]} cannot publish under {owner}, only under {", ".join(owners)}: give such a name.')
        return user['name']

    def read(self, revision: str | None = None) -> Remote:
        """What the branch, or another revision, holds now; what main holds where there is no such branch yet."""
        missing = False
        try:
            info = self._ask(lambda: self.api.model_info(
                self.repo_id, revision=revision or self.branch, files_metadata=True))
        except RepositoryNotFoundError:
            return Remote(False)
        except RevisionNotFoundError:  # the branch will be made from main
            info = self._ask(lambda: self.api.model_info(self.repo_id, files_metadata=True))
            missing = True
        files = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or []}
        return Remote(
            True, bool(info.private), None if missing else info.sha, files, {} if revision else self._tags())

    def _tags(self) -> dict[str, str]:
        return {tag.name: tag.target_commit for tag in self._ask(lambda: self.api.list_repo_refs(self.repo_id)).tags}

    def plan(self, remote: Remote, local: Mapping[str, LocalFile], replace: bool) -> Plan:
        """What a commit would change.

        Raises:
            PublishError: If it would put other weights, or worse figures, in the place of what is published, and
                `replace` was not given.
        """
        plan = Plan.between(remote, local)
        if not plan.empty and not replace and (differences := self._differences(remote, local)):
            raise PublishError(
                Exit.DIFFERENT,
                f'{self.repo_id} holds another model: {"; ".join(differences)}. Nothing was changed. Give --replace to '
                'put this one in its place (the old one stays in the history), or another name.')
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
        """Content of a file there and here, {} for none."""
        there, here = {}, {}
        if name in local:
            here = json.loads(local[name].path.read_text())
        if name in remote.files:
            with tempfile.TemporaryDirectory() as cache:
                path = self._ask(lambda: hf_hub_download(
                    self.repo_id, name, revision=remote.head or 'main', cache_dir=cache, token=self.token))
                with contextlib.suppress(ValueError):  # damaged or of another tool: the weights tell
                    there = json.loads(Path(path).read_text())
        return there if isinstance(there, dict) else {}, here

    def check_card(self, text: str) -> None:
        """Have the Hub check the front matter of a model card.

        Raises:
            PublishError: With what the Hub says against it.
        """
        try:
            self._ask(ModelCard(text).validate)
        except ValueError as error:
            raise PublishError(Exit.REFUSED, f'The Hub refuses the model card: {error}') from error

    def prepare(self, remote: Remote, private: bool) -> Remote:
        """Make the repository and the branch where they are missing."""
        if not remote.exists:
            self._ask(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True))
            remote = self.read()
        if private and not remote.private:  # made by somebody else meanwhile
            raise PublishError(Exit.CHANGED, f'{self.repo_id} is public, not --private as asked for: nothing was sent.')
        if remote.exists and remote.head is None and self.branch != 'main':
            self._ask(lambda: self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True))
            remote = self.read()
        return remote

    def commit(
            self,
            remote: Remote,
            local: Mapping[str, LocalFile],
            replace: bool,
            message: str,
    ) -> Published:
        """Put all changes into one commit on the version that was read; after a lost answer look, do not repeat.

        Raises:
            PublishError: If it could not be made; the repository then holds what it held before.
        """
        if self.create_pr and (found := self.find(local)):
            _logger.info('A pull request with just these files is there already.')
            return found
        for attempt in range(_ATTEMPTS):
            plan = self.plan(remote, local, replace)
            if plan.empty:
                return self.at(remote.head)
            if not attempt:
                self._upload(plan, local)
            try:
                done = self.api.create_commit(
                    self.repo_id, [*_additions(plan, local), *map(CommitOperationDelete, plan.delete)],
                    commit_message=message, parent_commit=remote.head, revision=self.branch, create_pr=self.create_pr)
                return Published(done.oid, done.pr_revision or done.oid, done.pr_url or done.commit_url)
            except UPLOAD_ERRORS as error:
                failure = explain(error)
                if failure.kind not in (*_PASSING, 'stale'):
                    raise self._stop(failure) from error
                last = attempt + 1 == _ATTEMPTS
                if failure.kind != 'stale' and not last:
                    _wait(error, failure, attempt)
                if found := self.find(local):
                    _logger.info('The commit is there, only its answer was lost.')
                    return found
                if last:
                    raise self._stop(failure) from error
                remote = self.read()
        raise AssertionError('unreachable')

    def _upload(self, plan: Plan, local: Mapping[str, LocalFile]) -> None:
        """Bring large files to the Hub, where nothing shows them before the commit; retried by the client itself."""
        try:
            self.api.preupload_lfs_files(
                self.repo_id, _additions(plan, local), revision=self.branch, create_pr=self.create_pr)
        except UPLOAD_ERRORS as error:
            raise self._stop(explain(error)) from error

    def find(self, local: Mapping[str, LocalFile]) -> Published | None:
        """The version that holds these files, if the Hub has it."""
        if not self.create_pr:
            remote = self.read()
            return self.at(remote.head) if Plan.between(remote, local).empty else None
        refs = self._ask(lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True))
        for pull in sorted(refs.pull_requests or [], key=lambda ref: int(ref.ref.rpartition('/')[2]), reverse=True):
            if Plan.between(self.read(pull.ref), local).empty:
                url = f'{constants.ENDPOINT}/{self.repo_id}/discussions/{pull.ref.rpartition("/")[2]}'
                return Published(pull.target_commit, pull.ref, url)
        return None

    def at(self, head: str) -> Published:
        """The version of a commit."""
        return Published(head, head, f'{constants.ENDPOINT}/{self.repo_id}/tree/{head}')

    def verify(self, published: Published, local: Mapping[str, LocalFile]) -> None:
        """Download everything into a fresh cache, compare each sha256, and the logits bit for bit.

        Raises:
            PublishError: If what is there is not what was published, or cannot be downloaded.
        """
        there = self.read(published.revision)
        plan = Plan.between(there, local)
        if not plan.empty:
            raise self._unverified(published, f'the Hub lists {", ".join(plan.add + plan.delete)} otherwise')
        with tempfile.TemporaryDirectory() as cache:
            for name, file in local.items():
                path = self._ask(lambda name=name: hf_hub_download(
                    self.repo_id, name, revision=published.revision, cache_dir=cache, token=self.token))
                if file_sha256(Path(path)) != file.sha256:
                    raise self._unverified(published, f'{name} arrives with another sha256')
            loaded = self._ask(lambda: timm.create_model(
                f'hf-hub:{self.repo_id}@{published.revision}', pretrained=True, cache_dir=cache)).eval()
        here = load_back(local[WEIGHTS].path.parent)
        images = fixed_images(here)
        if not torch.equal(logits(loaded, images), logits(here, images)):
            raise self._unverified(published, 'the model loaded from there gives other logits')

    def _unverified(self, published: Published, why: str) -> PublishError:
        return PublishError(
            Exit.UNVERIFIED,
            f'Published as {published.url}, but it could not be verified: {why}. No tag was set. Run the same command '
            'again to verify once more; if it fails again, do not announce it.')

    def tag(self, name: str, oid: str) -> None:
        """Tag a commit; a tag that is on it already is left."""
        tags = self._tags()
        if name not in tags:
            self._ask(lambda: self.api.create_tag(self.repo_id, tag=name, revision=oid, exist_ok=True))
            tags = self._tags()
        if tags.get(name) != oid:
            raise PublishError(
                Exit.BAD_INPUT, f'The tag {name} is on another commit, {tags.get(name)}, and is never moved: give '
                                'another --tag.')

    def _ask(self, request: Callable[[], _T], at_once: bool = False) -> _T:
        """Answer of a request that may be repeated; `at_once` does not wait for a network that is not there."""
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


def _additions(plan: Plan, local: Mapping[str, LocalFile]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name, str(local[name].path)) for name in plan.add]


def _wait(error: BaseException, failure: HubFailure, attempt: int) -> None:
    headers = getattr(getattr(error, 'response', None), 'headers', {})
    told = re.fullmatch(r'\s*(\d+)\s*', headers.get('Retry-After', '')) or re.search(
        r';\s*t=(\d+)', headers.get('RateLimit', ''))
    seconds = int(told[1]) if told else min(2 ** attempt, _LONGEST_WAIT)
    _logger.warning(f'{failure.words[0].upper()}{failure.words[1:]}: trying again in {seconds} s.')
    time.sleep(seconds)

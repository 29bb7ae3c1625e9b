"""Complete and unchanged models from the Hugging Face Hub, and clear messages for the errors of its client."""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the client's HTTP library, which differs between its versions
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj

__all__ = [
    'FILES', 'HUB_ERRORS', 'UPLOAD_ERRORS', 'HubFailure', 'ask_config', 'explain', 'file_sha256', 'model_folder',
    'split_id']

# Files of a published model
FILES = ('config.json', 'model.safetensors')

# Errors of the client if a request fails
HUB_ERRORS = (HTTPError, EntryNotFoundError, LocalTokenNotFoundError, HFValidationError, OSError)
# Errors if an upload fails: its threads wrap them in a RuntimeError
UPLOAD_ERRORS = (*HUB_ERRORS, RuntimeError)
_QUOTA_WORDS = ('storage', 'quota', 'billing', 'too large')


@dataclass(frozen=True)
class HubFailure:
    """Why a request to the Hub failed.

    Attributes:
        kind: 'offline', 'network', 'no_token', 'bad_token', 'forbidden', 'gated', 'missing', 'stale', 'quota', 'rate',
            'server', 'refused', or 'other' for an error that is not the Hub's.
        words: One sentence for the user, without the full stop.
    """
    kind: str
    words: str


def split_id(name: str) -> tuple[str, str | None]:
    """Repository and revision of 'owner/name' or 'owner/name@revision'.

    Raises:
        ValueError: If the name has another form.
    """
    found = re.fullmatch(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', name, re.ASCII)
    repo_id, revision = found.groups() if found else ('', None)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f'{name!r} is not a name of the Hub: give owner/name, or owner/name@revision.') from error
    return repo_id, revision


def ask_config(name: str) -> tuple[dict[str, Any], str]:
    """config.json of a repository, and its commit, by one request of at most three seconds. Nothing is cached.

    Args:
        name: 'owner/name', or with '@revision'.

    Raises:
        FileNotFoundError: If it does not exist or there is no answer; the error gives the reason.
        ValueError: If the name is not valid, or the answer is not a JSON object.
    """
    repo_id, revision = split_id(name)
    try:
        answer = get_session().get(
            hf_hub_url(repo_id, FILES[0], revision=revision), headers=build_hf_headers(), timeout=3.,
            follow_redirects=True)
        hf_raise_for_status(answer)
    except HUB_ERRORS as error:
        raise FileNotFoundError(f'hf-hub:{name} could not be downloaded: {explain(error).words}.') from error
    try:
        return dict(answer.json()), answer.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT, 'main')
    except (TypeError, ValueError) as error:
        raise ValueError(f'The {FILES[0]} of hf-hub:{name} is damaged: {error}.') from error


def model_folder(name: str, quick: bool = False) -> Path:
    """Folder with config.json and model.safetensors of a repository, from the Hub or else from its client's cache.

    Args:
        name: 'owner/name', or with '@revision'.
        quick: First ask once, for at most three seconds, whether it exists. The client alone would retry many times.

    Raises:
        FileNotFoundError: If it is neither on the Hub nor in the cache; the error gives the reason.
        ValueError: If the name is not valid, or the weights in the cache are not those that were published.
    """
    repo_id, revision = split_id(name)
    reason = None
    if quick:
        try:
            ask_config(name)
        except FileNotFoundError as error:
            reason = error
    try:
        kept = reason is not None
        config = Path(hf_hub_download(repo_id, FILES[0], revision=revision, local_files_only=kept))
        # of the same commit
        weights = Path(hf_hub_download(repo_id, FILES[1], revision=config.parent.name, local_files_only=kept))
    except HUB_ERRORS as error:
        if reason is not None:
            raise reason from error
        raise FileNotFoundError(f'hf-hub:{name} could not be downloaded: {explain(error).words}.') from error
    # the client names a cached file by the sha256 that the Hub announced, but compares only the size
    announced = weights.resolve().name
    if re.fullmatch('[0-9a-f]{64}', announced) and file_sha256(weights) != announced:
        raise ValueError(
            f'The weights of hf-hub:{name} in the cache are not those that were published (the sha256 differs): delete '
            f'{weights.resolve()} and run again.')
    return config.parent


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with open(path, 'rb') as file:
        return sha_fileobj(file).hex()


def explain(error: BaseException) -> HubFailure:
    """Say what went wrong, given an error of huggingface_hub."""
    while isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__  # 'not in the cache' and 'error while uploading' do not give the reason
    if isinstance(error, OfflineModeIsEnabled) or (
            isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE):
        return HubFailure('offline', 'HF_HUB_OFFLINE is set, and the cache does not hold the file')
    if isinstance(error, LocalTokenNotFoundError):
        return HubFailure('no_token', 'no token was found: give one by `hf auth login` or HF_TOKEN')
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error)
    if isinstance(error, HFValidationError):
        return HubFailure('missing', 'the Hub does not allow this name')
    if isinstance(error, FileMetadataError):
        return HubFailure('network', f'{constants.ENDPOINT} does not answer like the Hub: check HF_ENDPOINT')
    if isinstance(error, OSError) and str(error).startswith('Consistency check failed'):
        return HubFailure('network', 'a file arrived with the wrong size: try again')
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        reason = ' '.join(str(error).split()) or type(error).__name__
        return HubFailure('network', f'{constants.ENDPOINT} cannot be reached ({reason[:150]})')
    return HubFailure('other', ' '.join(str(error).split()) or type(error).__name__)


def _explain_answer(error: HfHubHTTPError) -> HubFailure:
    status = error.response.status_code
    told = error.server_message or error.response.headers.get('X-Error-Message') or ''
    told = f': {" ".join(told.split())[:300]}' if told else ''
    if isinstance(error, GatedRepoError):
        return HubFailure('gated', f'first ask for access on its page{told}')
    if status == 401 and re.search('Invalid (credentials|user token)', f'{told} {error}'):
        return HubFailure('bad_token', f'the token is not valid: renew it by `hf auth login` or HF_TOKEN{told}')
    if isinstance(error, RepositoryNotFoundError):
        return HubFailure(
            'missing', 'there is no such repository, or it is private and your token (if any) may not read it')
    if isinstance(error, RevisionNotFoundError):
        return HubFailure('missing', 'it has no such revision')
    if isinstance(error, EntryNotFoundError):
        return HubFailure('missing', f'it lacks the file {error.response.url.path.rpartition("/")[2]}')
    if status == 401:
        return HubFailure('no_token', f'a token is needed: give one by `hf auth login` or HF_TOKEN{told}')
    if status in (402, 413) or (status == 403 and any(word in told.lower() for word in _QUOTA_WORDS)):
        return HubFailure('quota', f'the Hub has no room for it{told}')
    if status == 403:
        return HubFailure('forbidden', f'the token may not do this{told}')
    if status == 412:
        return HubFailure('stale', f'somebody else has changed the repository in the meantime{told}')
    if status == 429:
        return HubFailure('rate', f'there were too many requests, try again later{told}')
    if status >= 500:
        return HubFailure('server', f'the Hub answers {status}, try again later{told}')
    return HubFailure('refused', f'the Hub answers {status}{told}')

"""Publishing a model: the steps in their order, from the folder to the tag."""
import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard

from ..benchmarks import BENCHMARKS, CATALOGUE, PUBLISHED, TAGS
from ..models._hub import HUB_ERRORS, explain, file_sha256, split_id
from ..models.weights import CONFIG, WEIGHTS
from ..version import __version__
from .card import Card, model_card
from .export import load_back, logits, registered_name, write_model
from .figures import METRICS, check_sample
from .programs import noise
from .repository import Exit, LocalFile, Plan, Published, PublishError, Remote, Repository, local_files
from .source import Model, other_figures, read_model, training_command

_logger = logging.getLogger('publish')

CARD = 'README.md'
_UNVERIFIED = 'is published, but not verified'
_AGAIN = 'Run the same command again.'
# For weights that this code trained on a public benchmark
_DEFAULT_LICENSE = 'apache-2.0'


@dataclass(frozen=True)
class Options:
    """How to publish; each field holds the value of the flag with its name, see `publish.py --help`."""
    run: Path
    repo_id: str
    dry_run: bool = False
    private: bool = False
    revision: str = 'main'
    create_pr: bool = False
    tag: str | None = None
    replace: bool = False
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    dataset_name: str | None = None
    datasets: Sequence[str] = ()
    other_seeds: Sequence[Path] = ()
    data_dir: str | None = None
    list_dir: str | None = None
    sample: int = 512
    device: str | None = None

    def check(self) -> None:
        """Refuse flags that do not fit.

        Raises:
            ValueError: Naming the flag.
        """
        if split_id(self.repo_id)[1]:
            raise ValueError(f'{self.repo_id!r} has a revision: give OWNER/NAME, and the branch by --revision.')
        if self.create_pr and self.tag:
            raise ValueError(
                '--create-pr and --tag exclude each other: merge the pull request first, then tag what was merged.')
        if self.sample < 1:
            raise ValueError(f'--sample must be 1 or more, got {self.sample}.')
        for flag, name in (('--revision', self.revision), ('--tag', self.tag)):
            if name is not None and (name.startswith('refs/') or not re.fullmatch(r'\w[\w./-]*\w|\w', name, re.ASCII)):
                raise ValueError(f'{flag} {name!r} is not a name for git: give letters, digits, points and dashes.')
        for name in self.datasets:
            if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name, re.ASCII):
                raise ValueError(f'--datasets {name!r} is not an id of the Hub: give OWNER/NAME.')
        if self.license == 'other' and not (self.license_name and self.license_link):
            raise ValueError('--license other needs --license-name and --license-link.')
        if (self.license_name or self.license_link) and self.license != 'other':
            raise ValueError('--license-name and --license-link belong to --license other.')


def publish(options: Options, folder: Path) -> dict[str, Any]:
    """Build the folder, check it, commit, verify and tag, as the options say.

    Returns:
        A report: repository, files, what was changed, commit and page, whether it is verified.

    Raises:
        ValueError: If an option or the run is at fault; nothing was sent.
        PublishError: If the Hub or its answer is at fault. The message says what is there now.
    """
    options.check()
    model = read_model(options.run)
    card = build_folder(model, folder, options)
    checked = check_sample(model, str(options.run), options.sample, {
        'data_dir': options.data_dir, 'list_dir': options.list_dir, 'device': options.device})
    local = local_files(folder)
    _logger.info(f'{options.run}: {model.architecture}; {checked}.')
    if str((model.config['training'] or {}).get('git')).endswith('-dirty'):
        _logger.warning('The run was trained with uncommitted changes, so nobody else can get its code.')
    for name, file in local.items():
        _logger.info(f'  {name:24}{file.size:>13,} B  sha256 {file.sha256}')

    repository = Repository(options.repo_id, options.revision, options.create_pr)
    _refuse_token(repository.token, folder)
    repository.check_access()
    remote = repository.read()
    plan = repository.plan(remote, local, options.replace)
    _check_remote(options, remote, plan)
    _check_card(repository, card)
    _logger.info(_describe(options, remote, plan))
    report = {
        'repo': options.repo_id, 'revision': options.revision,
        'files': {name: file.size for name, file in local.items()},
        'sha256': {name: file.sha256 for name, file in local.items()}, 'add': plan.add, 'delete': plan.delete,
        'checked': checked, 'nothing_to_do': plan.empty, 'dry_run': options.dry_run, 'oid': remote.head, 'url': None,
        'verified': False, 'tag': None}
    if options.dry_run:
        return report
    if plan.empty:
        remote = _existing(options, repository, remote)  # a new branch holds what main holds
        _logger.info(f'Nothing to do: {options.repo_id} holds exactly this model.')
        published = repository.at(str(remote.head))
    else:
        message = f'Publish {model.architecture} by timm_deitlt {__version__}'
        published = _commit(options, repository, remote, local, message)
        _logger.info(f'Published: {published.url}')
    _logger.info('Verifying what is on the Hub.')
    with _published(published, Exit.UNVERIFIED, _UNVERIFIED):
        verify(repository, published, local)
    _logger.info('Everything was downloaded into a fresh cache: each sha256 and the logits are equal, bit for bit.')
    if options.tag:
        with _published(published, Exit.NOT_TAGGED, 'is published and verified, but perhaps not tagged'):
            repository.tag(options.tag, published.oid)
        _logger.info(f'Tagged {options.tag}.')
    name = options.repo_id.split('/')[1]
    if name in CATALOGUE and name not in PUBLISHED:
        _logger.info(f'To let timm.create_model({name!r}, pretrained=True) load it, list it in PUBLISHED of '
                     'timm_deitlt/benchmarks.py.')
    return {**report, 'oid': published.oid, 'url': published.url, 'verified': True, 'tag': options.tag}


# The folder

def build_folder(model: Model, folder: Path, options: Options) -> ModelCard:
    """Write everything that is published: the files of an exported model, and the card.

    Returns:
        The card.

    Raises:
        ValueError: If the name of the repository promises another model, the data set or the licence of the card is
            missing, or the other runs differ in more than their seed.
    """
    registered = registered_name(model, options.repo_id.split('/')[1])
    tag = TAGS.get(str(model.config.get('benchmark')))
    benchmark = BENCHMARKS.get(tag.dataset if tag else str((model.config['data'] or {}).get('name')))
    license_id = options.license
    if license_id is None:
        license_id = _DEFAULT_LICENSE if benchmark and not (options.run / CONFIG).is_file() else ''
    if not license_id.strip():
        raise ValueError(
            'The card needs a licence, which decides what others may do with the weights: give --license, such as '
            'apache-2.0, mit or cc-by-nc-4.0.')
    dataset_name = ' '.join((options.dataset_name or (benchmark.title if benchmark else '')).split())
    if not dataset_name:
        raise ValueError('The data set is not a benchmark, so the card needs its name: give --dataset-name.')
    others = other_figures(model, [read_model(path) for path in options.other_seeds])
    write_model(model, folder, license_id)
    card = model_card(Card(
        config=json.loads((folder / CONFIG).read_text()),
        metrics=json.loads((folder / METRICS).read_text()) if model.metrics else {},
        repo_id=options.repo_id,
        license=license_id,
        dataset_name=dataset_name,
        evaluation=_evaluation(model, options.repo_id),
        num_params=sum(parameter.numel() for parameter in model.network.parameters()),
        command=training_command(model.settings) if model.settings else None,
        registered=registered,
        license_name=options.license_name,
        license_link=options.license_link,
        datasets=tuple(options.datasets) or (benchmark.hub_datasets if benchmark else ()),
        plots=tuple(sorted(path.name for path in (folder / 'plots').glob('*'))),
        others=others,
    ))
    (folder / CARD).write_text(str(card), encoding='utf-8')
    return card


def _evaluation(model: Model, repo_id: str) -> str:
    """The command that repeats the figures."""
    words = ['python validate.py', f'hf-hub:{repo_id}']
    tag = TAGS.get(str(model.config.get('benchmark')))
    if model.settings is None and tag:  # config.json of a run names the data
        words.append(f'--dataset {tag.dataset}')
        if tag.imbalance_factor not in (None, BENCHMARKS[tag.dataset].imbalance_factor):
            words.append(f'--imbalance-factor {tag.imbalance_factor:g}')
    data_dir = model.settings.data_dir if model.settings else True
    return ' '.join([*words, *(['--data-dir DIR'] if data_dir else [])])


def _refuse_token(token: str | None, folder: Path) -> None:
    for path in folder.rglob('*'):
        if token and path.is_file() and token.encode() in path.read_bytes():
            raise ValueError(f'{path.name} would hold your token: remove it from the settings of the run.')


# The repository

def _check_remote(options: Options, remote: Remote, plan: Plan) -> None:
    message = None
    if not remote.exists and options.create_pr:
        message = f'There is no {options.repo_id}, so it cannot get a pull request: leave out --create-pr.'
    elif remote.exists and options.private and not remote.private:
        message = (f'{options.repo_id} is public, and --private is for a new repository: make it private in its '
                   'settings, or leave out the flag.')
    elif options.revision in remote.tags:
        message = f'{options.revision} is a tag of {options.repo_id}: --revision takes a branch.'
    elif options.tag and options.tag in remote.tags and (remote.tags[options.tag] != remote.head or not plan.empty):
        message = (f'The tag {options.tag} is on another commit, {remote.tags[options.tag]}, and is never moved: give '
                   'another --tag.')
    if message:
        raise PublishError(Exit.BAD_INPUT, message)


def _check_card(repository: Repository, card: ModelCard) -> None:
    """Let the Hub check the front matter of the card."""
    try:
        repository.ask(card.validate)
    except ValueError as error:
        raise PublishError(Exit.REFUSED, f'The Hub refuses the model card: {error}') from error


def _describe(options: Options, remote: Remote, plan: Plan) -> str:
    visible = 'private' if (remote.private if remote.exists else options.private) else 'public'
    version = f'at {remote.head[:12]}' if remote.head else 'is new'
    lines = [f'{options.repo_id} ({visible}, {options.revision} {version}):']
    lines += [f'  add {name}' for name in plan.add] + [f'  delete {name}' for name in plan.delete]
    lines += [f'  keep {name}, which is not ours' for name in plan.keep if name != '.gitattributes']
    return '\n'.join(lines if plan.add or plan.delete else [*lines, '  nothing changes'])


def _commit(
        options: Options,
        repository: Repository,
        remote: Remote,
        local: Mapping[str, LocalFile],
        message: str,
) -> Published:
    if not remote.exists:
        _logger.info(f'Making {options.repo_id}, which stays empty until the commit.')
    try:
        remote = _existing(options, repository, remote)
        return repository.commit(remote, local, options.replace, message)
    except KeyboardInterrupt:
        found = None
        with contextlib.suppress(*HUB_ERRORS, PublishError):
            found = repository.find(local)
        if found:
            raise PublishError(Exit.INTERRUPTED, f'interrupted: {found.url} {_UNVERIFIED}. {_AGAIN}') from None
        raise


def _existing(options: Options, repository: Repository, remote: Remote) -> Remote:
    """Make the repository and the branch if they are missing."""
    if not remote.exists:
        repository.ask(lambda: repository.api.create_repo(options.repo_id, private=options.private, exist_ok=True))
        remote = repository.read()
    if options.private and not remote.private:  # somebody else made it in the meantime
        raise PublishError(Exit.CHANGED, f'{options.repo_id} is public, not --private. Nothing was sent.')
    if remote.exists and remote.head is None and options.revision != 'main':
        repository.ask(lambda: repository.api.create_branch(options.repo_id, branch=options.revision, exist_ok=True))
        remote = repository.read()
    return remote


def verify(repository: Repository, published: Published, local: Mapping[str, LocalFile]) -> None:
    """Download everything into a fresh cache, and compare each sha256, and the logits bit for bit.

    Raises:
        PublishError: Naming the first difference.
    """
    plan = Plan.between(repository.read(published.revision), local)
    if not plan.empty:
        raise _differs(f'the Hub lists other contents of {", ".join(plan.add + plan.delete)}')
    with tempfile.TemporaryDirectory() as cache:
        for name, file in local.items():
            if file_sha256(repository.download(name, published.revision, cache)) != file.sha256:
                raise _differs(f'{name} arrives with another sha256')
        loaded: Any = repository.ask(lambda: timm.create_model(
            f'hf-hub:{repository.repo_id}@{published.revision}', pretrained=True, cache_dir=cache)).eval()
    here = load_back(local[WEIGHTS].path.parent)
    images = noise(here)
    if not torch.equal(logits(loaded, images), logits(here, images)):
        raise _differs('the model that is loaded from there gives other logits')


def _differs(what: str) -> PublishError:
    return PublishError(Exit.UNVERIFIED, f'{what}. If this happens again, do not announce the model.')


@contextlib.contextmanager
def _published(published: Published, code: Exit, state: str) -> Iterator[None]:
    """After the commit, each error says what is on the Hub already."""
    try:
        yield
    except KeyboardInterrupt:
        raise PublishError(Exit.INTERRUPTED, f'interrupted: {published.url} {state}. {_AGAIN}') from None
    except (*HUB_ERRORS, PublishError) as error:
        words = str(error) if isinstance(error, PublishError) else f'{explain(error).words}.'
        raise PublishError(code, f'{published.url} {state}: {words} {_AGAIN}') from error

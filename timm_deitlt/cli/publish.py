"""The command `publish`: a model goes to the Hugging Face Hub in one verified commit."""
import argparse
import contextlib
import json
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from ..benchmarks import CATALOGUE, PUBLISHED
from ..hub.build import FILES, CardFacts, build_folder
from ..hub.plan import EXITS, Exit, Plan, PublishError, Remote, local_files
from ..hub.remote import Published, Repository
from ..hub.sample import check_sample
from ..hub.source import read_model
from ..models._hub import HUB_ERRORS, explain, split_id
from ..version import __version__
from .parsers import publish_parser

_logger = logging.getLogger('publish')


def publish(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build, check, commit, verify and tag as told; returns the report."""
    _check_flags(args)
    model = read_model(args.run)
    facts = CardFacts(
        args.repo_id, args.license, args.license_name, args.license_link, args.dataset_name, tuple(args.datasets))
    card = build_folder(model, folder, facts, args.other_seeds)
    checked = check_sample(model, str(args.run), args.sample, {
        'data_dir': args.data_dir, 'list_dir': args.list_dir, 'device': args.device})
    local = local_files(folder)
    network: Any = model.network
    architecture = network.pretrained_cfg['architecture']
    _logger.info(f'{args.run}: {architecture}; {checked}.')
    if str((model.config['training'] or {}).get('git')).endswith('-dirty'):
        _logger.warning('The run was trained with uncommitted changes: nobody else can get that code.')
    for name, file in local.items():
        _logger.info(f'  {name:24}{file.size:>13,} B  sha256 {file.sha256}')

    repository = Repository(args.repo_id, args.revision, args.create_pr)
    _refuse_token(repository.token, folder)
    repository.check_access()
    remote = repository.read()
    plan = repository.plan(remote, local, args.replace)
    _check_remote(args, remote, plan)
    repository.check_card(card)
    _logger.info(_describe(args, remote, plan))
    report = {
        'repo': args.repo_id, 'revision': args.revision, 'files': {name: file.size for name, file in local.items()},
        'sha256': {name: file.sha256 for name, file in local.items()}, 'add': plan.add, 'delete': plan.delete,
        'checked': checked, 'nothing_to_do': plan.empty, 'dry_run': args.dry_run, 'oid': remote.head, 'url': None,
        'verified': False, 'tag': None}
    if args.dry_run:
        return report
    if plan.empty:
        _logger.info(f'Nothing to do: {args.repo_id} holds just this.')
        published = repository.at(str(remote.head))
    else:
        published = _commit(args, repository, remote, local, f'Publish {architecture} by timm_deitlt {__version__}')
        _logger.info(f'Published: {published.url}')
    report.update(oid=published.oid, url=published.url)
    return _verify_and_tag(args, repository, published, local, report)


def _commit(
        args: argparse.Namespace,
        repository: Repository,
        remote: Remote,
        local: dict[str, Any],
        message: str,
) -> Published:
    if not remote.exists:
        _logger.info(f'Making {args.repo_id}, which stays empty until the commit.')
    try:
        remote = repository.prepare(remote, args.private)
        return repository.commit(remote, local, args.replace, message)
    except KeyboardInterrupt:
        found = None
        with contextlib.suppress(*HUB_ERRORS, PublishError):
            found = repository.find(local)
        if found:
            raise PublishError(Exit.INTERRUPTED, _unverified_words(found)) from None
        raise


def _unverified_words(published: Published) -> str:
    return f'interrupted: {published.url} is published, but not verified: run the same command again.'


def _verify_and_tag(
        args: argparse.Namespace,
        repository: Repository,
        published: Published,
        local: dict[str, Any],
        report: dict[str, Any],
) -> dict[str, Any]:
    _logger.info('Verifying what is there.')
    try:
        repository.verify(published, local)
    except KeyboardInterrupt:
        raise PublishError(Exit.INTERRUPTED, _unverified_words(published)) from None
    except (*HUB_ERRORS, PublishError) as error:
        if isinstance(error, PublishError) and error.code == Exit.UNVERIFIED:
            raise
        words = str(error) if isinstance(error, PublishError) else f'{explain(error).words}.'
        raise PublishError(
            Exit.UNVERIFIED, f'Published as {published.url}, but it could not be verified: {words} No tag was set. Run '
                             'the same command again.') from error
    report['verified'] = True
    _logger.info('Downloaded into a fresh cache: every sha256 and the logits are those of here, bit for bit.')
    if args.tag:
        try:
            repository.tag(args.tag, published.oid)
        except KeyboardInterrupt:
            raise PublishError(
                Exit.INTERRUPTED, f'interrupted: {published.url} is published and verified, but perhaps not tagged: '
                                  'run the same command again.') from None
        except (*HUB_ERRORS, PublishError) as error:
            words = str(error) if isinstance(error, PublishError) else f'{explain(error).words}.'
            raise PublishError(
                Exit.NOT_TAGGED, f'Published and verified as {published.url}, but not tagged: {words} Run the same '
                                 'command again.') from error
        report['tag'] = args.tag
        _logger.info(f'Tagged {args.tag}.')
    name = args.repo_id.split('/')[1]
    if name in CATALOGUE and name not in PUBLISHED:
        _logger.info(f'To have timm.create_model({name!r}, pretrained=True) load it, list it in PUBLISHED of '
                     'timm_deitlt/benchmarks.py.')
    return report


def _check_flags(args: argparse.Namespace) -> None:
    if split_id(args.repo_id)[1]:
        raise ValueError(f'{args.repo_id!r} has a revision: give OWNER/NAME, and the branch by --revision.')
    if args.create_pr and args.tag:
        raise ValueError('--create-pr and --tag exclude each other: a tag belongs on what is merged.')
    if args.sample < 1:
        raise ValueError(f'--sample must be 1 or more, got {args.sample}.')
    for flag, name in (('--revision', args.revision), ('--tag', args.tag)):
        if name is not None and (name.startswith('refs/') or not re.fullmatch(r'\w[\w./-]*\w|\w', name, re.ASCII)):
            raise ValueError(f'{flag} {name!r} is no name that git takes: give letters, digits, points and dashes.')
    for name in args.datasets:
        if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name, re.ASCII):
            raise ValueError(f'--datasets {name!r} is no id of the Hub: give OWNER/NAME.')


def _check_remote(args: argparse.Namespace, remote: Remote, plan: Plan) -> None:
    if not remote.exists and args.create_pr:
        raise PublishError(Exit.BAD_INPUT, f'There is no {args.repo_id} to propose a change to: leave --create-pr out.')
    if remote.exists and args.private and not remote.private:
        raise PublishError(
            Exit.BAD_INPUT, f'{args.repo_id} is public, and --private is for a new repository: make it private in its '
                            'settings, or leave the flag out.')
    if args.revision in remote.tags:
        raise PublishError(Exit.BAD_INPUT, f'{args.revision} is a tag of {args.repo_id}: --revision takes a branch.')
    if args.tag in remote.tags and (remote.tags[args.tag] != remote.head or not plan.empty):
        raise PublishError(
            Exit.BAD_INPUT, f'The tag {args.tag} is on another commit, {remote.tags[args.tag]}, and is never moved: '
                            'give another --tag.')


def _describe(args: argparse.Namespace, remote: Remote, plan: Plan) -> str:
    visible = 'private' if (remote.private if remote.exists else args.private) else 'public'
    lines = [f'{args.repo_id} ({visible}, {args.revision} {"at " + remote.head[:12] if remote.head else "is new"}):']
    lines += [f'  add {name}' for name in plan.add] + [f'  delete {name}' for name in plan.delete]
    lines += [f'  keep {name}, which is not ours' for name in plan.keep if name != '.gitattributes']
    return '\n'.join(lines if plan.add or plan.delete else [*lines, '  nothing changes'])


def _refuse_token(token: str | None, folder: Path) -> None:
    for path in folder.rglob('*'):
        if token and path.is_file() and token.encode() in path.read_bytes():
            raise ValueError(f'{path.name} would hold your token: remove it from the settings of the run.')


def _hidden(text: str) -> str:
    """The text without the token."""
    with contextlib.suppress(UnicodeError, OSError):
        if token := get_token():
            return text.replace(token, '(token)')
    return text


def publish_main(argv: list[str] | None = None, prog: str = 'publish.py') -> int:
    """Entry of publish.py; returns the exit code."""
    args = publish_parser(prog).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    for name in ('timm', 'httpx', 'httpx2', 'huggingface_hub', 'filelock'):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger('timm_deitlt.run.build').setLevel(logging.WARNING)
    try:
        with contextlib.ExitStack() as stack:
            folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _check_folder(folder)
            report = publish(args, folder)
    except KeyboardInterrupt:
        code, message = Exit.INTERRUPTED, f'interrupted: no version of {args.repo_id} was changed.'
    except PublishError as error:
        code, message = error.code, str(error)
    except (*HUB_ERRORS, ValueError) as error:
        failure = explain(error)
        code = EXITS[failure.kind]
        message = str(error) if code == Exit.BAD_INPUT else f'{args.repo_id}: {failure.words}.'
    else:
        if args.json:
            print(json.dumps(report))
        return Exit.DONE
    message = _hidden(' '.join(message.split()))
    print(f'{prog}: error: {message}', file=sys.stderr)
    if args.json:
        print(json.dumps({'repo': args.repo_id, 'error': message, 'code': int(code)}))
    return code


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--folder {folder} is a file: give a folder.')
    others = {path.name for path in folder.iterdir()} - FILES if folder.exists() else set()
    if others:
        raise ValueError(f'--folder {folder} holds other files ({", ".join(sorted(others)[:3])}): give a new one.')
    for path in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # of an earlier call

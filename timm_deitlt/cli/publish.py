"""The command `publish`: a model goes to the Hugging Face Hub in one verified commit."""
import contextlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import get_token

from ..hub.export import check_free
from ..hub.publish import Options, publish
from ..hub.repository import EXITS, Exit, PublishError
from ..models._hub import HUB_ERRORS, explain
from .parsers import publish_parser


def publish_main(argv: list[str] | None = None, prog: str = 'publish.py') -> int:
    """Entry of publish.py; returns the exit code."""
    values = vars(publish_parser(prog).parse_args(argv))
    kept, as_json = values.pop('folder'), values.pop('json')
    options = Options(**values)
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    for name in ('timm', 'httpx', 'httpx2', 'huggingface_hub', 'filelock', 'timm_deitlt.run.build'):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with contextlib.ExitStack() as stack:
            folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _empty(folder)
            report = publish(options, folder)
    except KeyboardInterrupt:
        code, message = Exit.INTERRUPTED, f'interrupted: no version of {options.repo_id} was changed.'
    except PublishError as error:
        code, message = error.code, str(error)
    except (*HUB_ERRORS, ValueError) as error:
        failure = explain(error)
        code = EXITS[failure.kind]
        message = str(error) if code == Exit.BAD_INPUT else f'{options.repo_id}: {failure.words}.'
    else:
        if as_json:
            print(json.dumps(report))
        return Exit.DONE
    message = _hidden(' '.join(message.split()))
    print(f'{prog}: error: {message}', file=sys.stderr)
    if as_json:
        print(json.dumps({'repo': options.repo_id, 'error': message, 'code': int(code)}))
    return code


def _empty(folder: Path) -> None:
    """Remove what an earlier call left in the folder of --folder."""
    check_free(folder)
    for path in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _hidden(text: str) -> str:
    """The text without the token."""
    with contextlib.suppress(UnicodeError, OSError):
        if token := get_token():
            return text.replace(token, '(token)')
    return text

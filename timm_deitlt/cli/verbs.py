"""The command `timm-deitlt VERB`. Nothing heavy is imported before it is known which verb is asked for."""
import argparse
import difflib
import os
import select
import sys
from importlib import import_module, reload

COMMAND = 'timm-deitlt'
# Module of this room and what it does; its function is VERB_main(argv, prog)
VERBS = {
    'train': ('commands', 'train a model, and its CNN teacher first where there is none yet'),
    'validate': ('commands', 'evaluate a model again: every expert, by class group'),
    'predict': ('predict', 'classify images'),
    'export': ('predict', "write a trained model as a folder in timm's form; ONNX on request"),
    'analyze': ('commands', 'measure what a model learned, and write the report of its run'),
    'ablate': ('commands', 'train the arms of a study over seeds, and print its table'),
    'recipes': ('recipes', 'list the recipes of settings; print or copy one'),
    'convert': ('convert', "bring the authors' released checkpoints into timm's form"),
    'publish': ('publish', 'put a model on the Hugging Face Hub, and verify what is there'),
}
# Verbs that need neither torch nor timm
LIGHT = ('recipes',)
# Exit code of a process that SIGPIPE ends
NO_READER = 141


def usage() -> str:
    """The help of the command."""
    width = max(map(len, VERBS))
    lines = [f'  {verb:{width}}  {words}' for verb, (_, words) in VERBS.items()]
    return '\n'.join([
        f'usage: {COMMAND} VERB ...', '', 'Train Vision Transformers on long-tailed data by DeiT-LT, and use them.', '',
        *lines, '', f'{COMMAND} VERB --help shows what a verb takes; {COMMAND} --version the version.'])


def main(argv: list[str] | None = None) -> None:
    """Call the verb that the command line begins with; ends the process with its exit code.

    If the reader of standard output leaves, as `head` does, the process ends without a message.
    """
    try:
        try:
            _call(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if hasattr(select, 'poll'):  # not on Windows
            output = select.poll()
            output.register(sys.stdout, select.POLLERR)
            if not output.poll(0):
                raise  # another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(NO_READER)


def _call(argv: list[str] | None) -> None:
    if '_ARGCOMPLETE' in os.environ:
        _complete()
    verb, *others = (sys.argv[1:] if argv is None else argv) or ['--help']
    if verb in ('-h', '--help'):
        print(usage())
        return
    if verb == '--version':
        from ..version import __version__
        print(f'{COMMAND} {__version__}')
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f'did you mean {near[0]}?' if near else f'use one of {", ".join(VERBS)}.'
        sys.stderr.write(f'{COMMAND}: error: unknown verb {verb!r}; {hint}\n')
        sys.exit(2)
    prog = f'{COMMAND} {verb}'
    if {'-h', '--help'} & set(others):
        from .parsers import PARSERS
        PARSERS[verb](prog).print_help()
        return
    if verb not in LIGHT:
        _import_package()
    module = import_module(f'.{VERBS[verb][0]}', __package__)
    sys.exit(getattr(module, f'{verb}_main')(others, prog))


def _import_package() -> None:
    """Run the __init__ of the package, which imports torch and timm, if the start of the command left it out."""
    package = sys.modules[__package__.partition('.')[0]]
    if not hasattr(package, '__version__'):
        reload(package)


def _complete() -> None:
    """Answer the shell, which asks how the command line may go on, and end the process."""
    import argcomplete  # it set the variable

    from .parsers import PARSERS
    parser = argparse.ArgumentParser(COMMAND)
    verbs = parser.add_subparsers()
    for verb, (_, words) in VERBS.items():
        verbs.add_parser(verb, parents=[PARSERS[verb](verb)], add_help=False, help=words)
    argcomplete.autocomplete(parser)

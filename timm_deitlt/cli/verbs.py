"""The command `timm-deitlt VERB`. Nothing heavy is imported before it is known which verb is asked for."""
import difflib
import sys
from importlib import import_module

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


def usage() -> str:
    """The help of the command."""
    width = max(map(len, VERBS))
    lines = [f'  {verb:{width}}  {words}' for verb, (_, words) in VERBS.items()]
    return '\n'.join([
        f'usage: {COMMAND} VERB ...', '', 'Train Vision Transformers on long-tailed data by DeiT-LT, and use them.', '',
        *lines, '', f'{COMMAND} VERB --help shows what a verb takes; {COMMAND} --version the version.'])


def main(argv: list[str] | None = None) -> None:
    """Call the verb that the command line begins with; ends the process with its exit code."""
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
    if verb == 'train' and {'-h', '--help'} & set(others):
        from ..settings.layers import build_parser  # which is there at once
        build_parser(prog).print_help()
        return
    module = import_module(f'.{VERBS[verb][0]}', __package__)
    sys.exit(getattr(module, f'{verb}_main')(others, prog))

"""`python -m timm_deitlt VERB`: the scripts of a clone, where there is only the package."""
import sys

VERBS = ('train', 'validate', 'analyze', 'ablate')


def main() -> None:
    """Call the verb that the command line begins with."""
    verb = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if verb in ('-h', '--help'):
        print(f'usage: python -m timm_deitlt {{{",".join(VERBS)}}} ...\n\nEach verb has a --help of its own.')
        return
    if verb not in VERBS:
        sys.exit(f'python -m timm_deitlt: error: unknown verb {verb!r}; use one of {", ".join(VERBS)}.')
    from .cli import commands
    getattr(commands, f'{verb}_main')(sys.argv[2:])


if __name__ == '__main__':
    main()

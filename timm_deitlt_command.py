"""The command `timm-deitlt`, beside the package, whose import takes seconds: so help is there at once."""
import sys
from importlib.util import find_spec, module_from_spec

# What needs neither torch nor the models
LIGHT = ('recipes', '-h', '--help', '--version')


def main() -> None:
    """Call the verb of the command line."""
    verb = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if verb in LIGHT or verb == 'train' and {'-h', '--help'} & set(sys.argv[2:]):
        # the package without its __init__, which imports torch and timm
        sys.modules['timm_deitlt'] = module_from_spec(find_spec('timm_deitlt'))
    from timm_deitlt.cli.verbs import main
    main()


if __name__ == '__main__':
    main()

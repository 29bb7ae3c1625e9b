# PYTHON_ARGCOMPLETE_OK
"""The command `timm-deitlt`, beside the package, whose import takes seconds: so help is there at once."""
import sys
from importlib.util import find_spec, module_from_spec


def main() -> None:
    """Call the verb of the command line."""
    # the package without its __init__, which imports torch and timm, and which `verbs` runs for verbs that need them
    sys.modules.setdefault('timm_deitlt', module_from_spec(find_spec('timm_deitlt')))
    from timm_deitlt.cli.verbs import main
    main()


if __name__ == '__main__':
    main()

"""`python -m timm_deitlt VERB`: the command `timm-deitlt`."""
from .cli.verbs import main

if __name__ == '__main__':
    main()

"""The command `recipes`: lists the packaged recipes, prints one, or copies it."""
import sys

from ..settings.layers import load_recipe, recipe_names, recipe_text
from ..utils.files import write_text
from .parsers import recipes_parser


def recipes_main(argv: list[str] | None = None, prog: str = 'timm-deitlt recipes') -> None:
    """Entry of `recipes`."""
    parser = recipes_parser(prog)
    args = parser.parse_args(argv)
    if args.name is None:
        if args.output is not None:
            parser.exit(2, f'{prog}: error: --output copies one recipe: give its NAME.\n')
        print('\n'.join(recipe_names()))
        return
    if args.name not in recipe_names():
        try:
            load_recipe(args.name)
            parser.exit(2, f'{prog}: error: {args.name} is a file, not the name of a recipe.\n')
        except (FileNotFoundError, ValueError) as error:
            parser.exit(2, f'{prog}: error: {error}\n')
    text = recipe_text(args.name)
    if args.output is None:
        sys.stdout.write(text)
    elif args.output.exists():
        parser.exit(2, f'{prog}: error: {args.output} exists: give a new file.\n')
    else:
        try:
            write_text(args.output, text)
        except (OSError, ValueError) as error:  # no such folder, no right to write, no room
            reason = getattr(error, 'strerror', None) or error
            parser.exit(
                2, f'{prog}: error: {args.output} cannot be written ({reason}): give a file in a folder that exists '
                'and can be written to.\n')
        print(f'{args.output}: train with -c {args.output}')

"""The commands `predict` and `export`, for a trained model."""
import sys
from typing import Any

from ..data.given import given_images
from ..hub.export import export
from ..run.predict import load_model
from ..run.predict_files import check_output, predict_files
from ..settings.checks import check_bounds
from .commands import guarded
from .parsers import export_parser, predict_parser


def predict_main(argv: list[str] | None = None, prog: str = 'timm-deitlt predict') -> None:
    """Entry of `predict`."""
    args = predict_parser(prog).parse_args(argv)

    def predict() -> dict[str, Any]:
        check_bounds({'batch_size': args.batch_size, 'workers': args.workers})
        if args.output is not None:
            check_output(args.output)
        trained = load_model(args.model, args.device)
        paths = given_images(args.images, sys.stdin, trained.image_mode)
        return predict_files(
            trained, paths, args.output, args.topk, args.experts, args.fusion,
            args.workers, args.batch_size, args.amp)

    guarded(prog, predict, 'nothing was written.')


def export_main(argv: list[str] | None = None, prog: str = 'timm-deitlt export') -> None:
    """Entry of `export`."""
    args = export_parser(prog).parse_args(argv)
    options = (args.onnx, args.torch_export, args.fold_prior)
    guarded(prog, lambda: export(args.run, args.out, *options), 'nothing was written.')

"""The commands `predict` and `export`, for a trained model."""
import argparse
import sys
from pathlib import Path
from typing import Any

from ..data.given import given_images
from ..evaluation.fusion import FUSIONS
from ..hub.export import export
from ..run.predict import load_model
from ..run.predict_files import check_output, predict_files
from .commands import guarded

_MODEL = 'folder of a run or of an exported model, checkpoint of a run, or hf-hub:OWNER/NAME'


def predict_main(argv: list[str] | None = None, prog: str = 'timm-deitlt predict') -> None:
    """Entry of `predict`."""
    parser = argparse.ArgumentParser(prog=prog, description='Classify images with a trained model.')
    parser.add_argument('model', help=_MODEL)
    parser.add_argument(
        'images', nargs='+', metavar='IMAGES',
        help='files, folders with all that is below, globs in quotes, or - for a list of paths on standard input')
    parser.add_argument(
        '-o', '--output', type=Path, metavar='FILE',
        help='.csv, .jsonl or .parquet file, written completely or not at all (default: print a line for each image)')
    parser.add_argument('--topk', type=int, default=5, metavar='K', help='classes to give for each image (default: 5)')
    parser.add_argument('--experts', action='store_true', help='also give the answers of CLS and DIST')
    parser.add_argument(
        '--fusion', default='mean', choices=('mean', *FUSIONS),
        help='how to combine the experts (default: the mean of their logits)')
    parser.add_argument('-b', '--batch-size', type=int, default=64, metavar='N', help='images in a batch (default: 64)')
    parser.add_argument(
        '-j', '--workers', type=int, metavar='N',
        help='processes that read images (default: one for each core, up to 8, on a GPU; one on a CPU)')
    parser.add_argument('--device', help='cuda, cuda:N or cpu (default: cuda if available)')
    parser.add_argument('--amp', action='store_true', help='compute in bfloat16 where it is safe')
    args = parser.parse_args(argv)

    def predict() -> dict[str, Any]:
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
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a trained model as a folder in timm's form, which timm loads by "
                    "create_model('local-dir:OUT', pretrained=True). No network is needed.")
    parser.add_argument('run', type=Path, metavar='RUN', help='folder of a run, a cached teacher or a converted model')
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write; an earlier export in it is replaced')
    parser.add_argument('--onnx', action='store_true', help='add model.onnx, compared with PyTorch')
    parser.add_argument('--torch-export', action='store_true', help='add model.pt2, a program of torch.export')
    args = parser.parse_args(argv)
    guarded(prog, lambda: export(args.run, args.out, args.onnx, args.torch_export), 'nothing was written.')

"""Parsers of the verbs, without what the verbs need: their help and their completion are there at once."""
import argparse
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from ..benchmarks import PAPER_TAGS
from ..settings.flags.own import FUSIONS
from ..settings.layers import build_parser

_MODEL = 'folder of a run or of an exported model, checkpoint of a run, or hf-hub:OWNER/NAME'
_CONVERT = """
Turn a released checkpoint of DeiT-LT, or of one of its teachers, into model.safetensors and config.json.

    %(prog)s student.pth OUT --benchmark cifar100_if100
    %(prog)s teacher.pth.tar OUT --list-file ImageNet_LT_train.txt

After `import timm_deitlt`, timm.create_model('local-dir:OUT', pretrained=True) loads the model. A teacher is used by
train.py --teacher-checkpoint OUT/model.safetensors."""
_PUBLISH = """
Publish a finished run, a cached teacher or a converted model on the Hugging Face Hub, and verify it there.

    hf auth login                                      # once; or set HF_TOKEN
    %(prog)s output/train/RUN OWNER/NAME --dry-run     # show what would change
    %(prog)s output/train/RUN OWNER/NAME --tag v1.0    # publish, verify, tag

One commit holds the weights (safetensors only), config.json in timm's form, metrics.json, args.yaml, plots, and a model
card with the measured figures. Then everything is downloaded into a fresh cache and compared: the sha256 of each file,
and the logits bit for bit. The tag is set last.

Exit codes: 0 published, or nothing to do; 2 the run or a flag is wrong; 3 no token; 4 invalid token; 5 the token may
not write there; 6 another model or better figures are published (see --replace); 7 others keep changing the repository;
8 no room on the Hub; 9 too many requests; 10 the Hub fails; 11 no network; 12 published, but not verified; 13 the Hub
refuses the content; 14 published and verified, but not tagged; 130 interrupted. The new version is on the Hub after 0,
12 and 14, and after 130 if the message says so. After all other codes nothing has changed there."""


def _model_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Parser of a verb that takes a trained model and the data to evaluate it on."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument('checkpoint', help=_MODEL)
    parser.add_argument('--data-dir', metavar='DIR', help='where the data set is (default: as in training)')
    parser.add_argument('--dataset', metavar='NAME', help='data set of an exported model')
    parser.add_argument('--list-dir', metavar='DIR', help='list files of lt/imagenet and lt/inat18')
    parser.add_argument('--imbalance-factor', type=float, metavar='X', help='its imbalance factor')
    parser.add_argument('--val-split', metavar='NAME', help='split to evaluate (default: as in training)')
    parser.add_argument(
        '-b', '--batch-size', dest='validation_batch_size', type=int, metavar='N', help='images in a batch')
    parser.add_argument('-j', '--workers', type=int, metavar='N', help='loader processes')
    parser.add_argument('--device', help='cuda, cuda:N or cpu (default: cuda if available)')
    parser.add_argument(
        '--amp', action=argparse.BooleanOptionalAction,
        help='mixed precision (default: as asked for in training, else what suits the device)')
    return parser


def validate_parser(prog: str = 'validate.py') -> argparse.ArgumentParser:
    """Parser of `validate`."""
    parser = _model_parser(prog, 'Evaluate a run or an exported model: every expert, by class group.')
    parser.add_argument(
        '--fusion', default='mean', choices=('mean', *FUSIONS, 'all'),
        help="other ways to combine the experts, too (default: only the run's own, and the mean of their logits)")
    return parser


def analyze_parser(prog: str = 'analyze.py') -> argparse.ArgumentParser:
    """Parser of `analyze`."""
    parser = _model_parser(
        prog,
        'Measure what a run or an exported model learned: how local its attention is, how many dimensions its tokens '
        'use, how far CLS and DIST differ, and what its teacher predicts for the training images.')
    parser.add_argument(
        '--num-images', type=int, default=1000, metavar='N', help='largest number of images (default: 1000)')
    return parser


def ablate_parser(prog: str = 'ablate.py') -> argparse.ArgumentParser:
    """Parser of `ablate`."""
    studies = files(__package__.partition('.')[0]) / 'studies'
    names = sorted(file.name.removesuffix('.yaml') for file in studies.iterdir() if file.name.endswith('.yaml'))
    parser = argparse.ArgumentParser(
        prog=prog, description='Train the arms of a study with several seeds; print its table and verdicts.')
    parser.add_argument('study', help=f'{", ".join(names)}, or a YAML file of the same form')
    parser.add_argument('--arms', nargs='+', metavar='NAME', help='arms to train (default: all)')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='N', help="seeds of the runs (default: the study's)")
    parser.add_argument('--subsets', nargs='+', type=int, default=[0], metavar='N', help='seeds of the images')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data set is')
    parser.add_argument('--results', type=Path, default=Path('results'), metavar='DIR', help='folder of results')
    parser.add_argument('--work', type=Path, default=Path('output/ablate'), metavar='DIR', help='folder of the runs')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='trainings at a time; they share the cores')
    parser.add_argument('--table', action='store_true', help='do not train; write verdicts.json and print the table')
    parser.add_argument('--readme', type=Path, metavar='FILE', help='also put the table between its marks in this file')
    return parser


def predict_parser(prog: str = 'timm-deitlt predict') -> argparse.ArgumentParser:
    """Parser of `predict`."""
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
        '--fusion', choices=('mean', *FUSIONS),
        help='how to combine the experts (default: as the run does)')
    parser.add_argument('-b', '--batch-size', type=int, default=64, metavar='N', help='images in a batch (default: 64)')
    parser.add_argument(
        '-j', '--workers', type=int, metavar='N',
        help='processes that read images (default: one for each core, up to 8, on a GPU; one on a CPU)')
    parser.add_argument('--device', help='cuda, cuda:N or cpu (default: cuda if available)')
    parser.add_argument('--amp', action='store_true', help='compute in bfloat16 where it is safe')
    return parser


def export_parser(prog: str = 'timm-deitlt export') -> argparse.ArgumentParser:
    """Parser of `export`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a trained model as a folder in timm's form, which timm loads by "
                    "create_model('local-dir:OUT', pretrained=True). No network is needed.")
    parser.add_argument('run', type=Path, metavar='RUN', help='folder of a run, a cached teacher or a converted model')
    parser.add_argument('out', type=Path, metavar='OUT', help='folder to write; an earlier export in it is replaced')
    parser.add_argument('--onnx', action='store_true', help='add model.onnx, compared with PyTorch')
    parser.add_argument('--torch-export', action='store_true', help='add model.pt2, a program of torch.export')
    parser.add_argument(
        '--fold-prior', action='store_true',
        help="take the class prior out of the CLS head, so that timm's mean of the experts is --fusion mean_adjusted")
    return parser


def recipes_parser(prog: str = 'timm-deitlt recipes') -> argparse.ArgumentParser:
    """Parser of `recipes`."""
    parser = argparse.ArgumentParser(prog=prog, description='List the recipes. Print one, or copy it to change it.')
    parser.add_argument('name', nargs='?', metavar='NAME', help='recipe to print, such as own_data')
    parser.add_argument('-o', '--output', type=Path, metavar='FILE', help='copy it to this new file')
    return parser


def convert_parser(prog: str = 'convert.py') -> argparse.ArgumentParser:
    """Parser of `convert`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_CONVERT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'file', type=Path, metavar='CHECKPOINT', help='released file, such as student.pth or teacher.pth.tar')
    parser.add_argument('out', type=Path, metavar='OUT', help='folder for model.safetensors and config.json')
    parser.add_argument('--benchmark', choices=PAPER_TAGS, help='the data set, if the file does not say it')
    parser.add_argument('--architecture', metavar='NAME', help='the architecture that the file must have')
    parser.add_argument(
        '--list-file', type=Path, metavar='FILE',
        help='training list that names the classes: ImageNet_LT_train.txt for imagenet_lt, train2018.json or '
             'iNaturalist18_train.txt for inat18')
    parser.add_argument(
        '--class-order', choices=['count', 'list'],
        help='how the network numbers these classes: by count (students and LDAM teachers), or as the list file (PaCo '
             'teachers); by default as its kind does')
    parser.add_argument('--overwrite', action='store_true', help='replace a converted model in OUT')
    return parser


def publish_parser(prog: str = 'publish.py') -> argparse.ArgumentParser:
    """Parser of `publish`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_PUBLISH, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'run', type=Path, metavar='RUN_DIR', help='folder of a run, of a cached teacher or of a converted model')
    parser.add_argument('repo_id', metavar='REPO_ID', help='OWNER/NAME on the Hub')
    parser.add_argument('--dry-run', action='store_true', help='build, check and compare, but change nothing')
    parser.add_argument('--folder', type=Path, metavar='DIR', help='keep the files here (default: temporary)')
    parser.add_argument('--json', action='store_true', help='print the report as one JSON object on the last line')
    group = parser.add_argument_group('repository')
    group.add_argument('--private', action='store_true', help='make a new repository private')
    group.add_argument('--revision', default='main', metavar='BRANCH', help='branch, made if missing (default: main)')
    group.add_argument('--create-pr', action='store_true', help='open a pull request instead of changing the branch')
    group.add_argument('--tag', metavar='NAME', help='tag the commit after it was verified; a tag is never moved')
    group.add_argument('--replace', action='store_true', help='replace another model or better figures')
    group = parser.add_argument_group('model card')
    group.add_argument('--license', metavar='ID', help="identifier of the Hub (default: apache-2.0 for benchmarks)")
    group.add_argument('--license-name', metavar='NAME', help='name of the licence, for --license other')
    group.add_argument('--license-link', metavar='URL', help='where the licence is, for --license other')
    group.add_argument('--dataset-name', metavar='TEXT', help='the data in words, if it is not a benchmark')
    group.add_argument('--datasets', nargs='+', default=[], metavar='ID', help='ids of the training data on the Hub')
    group.add_argument(
        '--other-seeds', nargs='+', default=[], type=Path, metavar='RUN_DIR',
        help='runs that differ only in the seed; the card then gives mean and standard deviation')
    group = parser.add_argument_group('figures')
    group.add_argument('--data-dir', metavar='DIR', help='where the data is now (default: as in training)')
    group.add_argument('--list-dir', metavar='DIR', help='list files of lt/imagenet and lt/inat18')
    group.add_argument(
        '--sample', type=int, default=512, metavar='N',
        help='images to evaluate again, if the data is here (default: 512)')
    group.add_argument('--device', help='device for this evaluation (default: cuda if available)')
    return parser


PARSERS: Mapping[str, Callable[[str], argparse.ArgumentParser]] = {
    'train': build_parser,
    'validate': validate_parser,
    'predict': predict_parser,
    'export': export_parser,
    'analyze': analyze_parser,
    'ablate': ablate_parser,
    'recipes': recipes_parser,
    'convert': convert_parser,
    'publish': publish_parser,
}

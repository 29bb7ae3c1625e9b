"""Predictions of many files into one file, which is whole or not there."""
import csv
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..engine.device import cores, keep_freed_memory
from ..engine.progress import doing
from ..engine.speed import synchronize
from ..utils.files import atomic_write
from .predict import TrainedModel

_logger = logging.getLogger(__name__)

# Reasons that the log lists; the output has them all
_MOST_LISTED = 10
# Timing the model by itself pays where there are so many batches, and takes so many seconds or passes
_FEWEST_BATCHES, _SECONDS, _PASSES = 4, 1., 3
_GIVE = 'give a file name that ends in .csv, .jsonl or .parquet'


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before any work.

    Raises:
        ValueError: If its form is unknown, its folder cannot be written to, or parquet lacks its package.
    """
    form = path.suffix.lower()
    if form not in _FORMS:
        raise ValueError(f'--output {path} has no known form: {_GIVE}.')
    if not path.parent.exists():
        raise ValueError(f'--output {path}: the folder {path.parent} does not exist: make it first, or give another.')
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f'--output {path} cannot be written, because it or its folder forbids it: {_GIVE}.')
    if form == '.parquet' and not find_spec('pyarrow'):
        raise ValueError("--output *.parquet needs pyarrow: pip install 'timm_deitlt[parquet]'.")


def predict_files(
        trained: TrainedModel,
        paths: Sequence[str],
        output: Path | None = None,
        topk: int = 5,
        experts: bool = False,
        fusion: str | None = None,
        workers: int | None = None,
        batch_size: int = 64,
        amp: bool = False,
        show: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Predict files, and write a row for each.

    Args:
        trained: The model.
        paths: Image files.
        output: A .csv, .jsonl or .parquet file, written whole or not at all; None to `show` a line for each image.
        topk: Classes of an answer.
        experts, fusion: See `TrainedModel.predict_batches`.
        workers: Processes that read images; by default one on a CPU, and on a GPU one for each core, 8 at most.
        batch_size: Images in a batch.
        amp: Compute in bfloat16 where it is safe.
        show: Takes the lines.

    Returns:
        'images', 'unreadable', 'output', 'seconds' and 'images_per_second'; with more than a few batches
        'model_images_per_second', of the model by itself, and 'share', the first rate by the second.

    Raises:
        ValueError: If an option or the output is not usable.
    """
    if output is not None:
        check_output(output)
    if workers is None:
        workers = _usual_workers(trained.device, len(paths) >= batch_size)
    if trained.device.type == 'cpu':
        keep_freed_memory()
    autocast = partial(torch.autocast, trained.device.type, torch.bfloat16) if amp else nullcontext
    batches = trained.predict_batches(paths, topk, experts, fusion, batch_size, workers, autocast)
    errors: list[str] = []
    began = time.perf_counter()
    rows = _counted(batches, len(paths), errors)
    if output is None:
        for row in chain.from_iterable(rows):
            show(_line(row))
    else:
        columns = _columns(trained, topk, experts)
        atomic_write(output, lambda temporary: _write(temporary, output.suffix.lower(), columns, rows))
    seconds = time.perf_counter() - began
    result = {
        'images': len(paths), 'unreadable': len(errors), 'output': output and str(output),
        'seconds': round(seconds, 2), 'images_per_second': round(len(paths) / seconds, 1)}
    if len(paths) >= _FEWEST_BATCHES * batch_size:
        rate = model_rate(trained, batch_size, autocast)
        result.update(model_images_per_second=round(rate, 1), share=round(len(paths) / seconds / rate, 3))
    _report(result, errors, trained.device)
    if len(errors) == len(paths):
        raise ValueError(f'None of the {len(paths)} images could be read, such as {errors[0]}')
    return result


def _usual_workers(device: torch.device, a_whole_batch: bool) -> int:
    return min(8, cores()) if device.type == 'cuda' else int(a_whole_batch)


def _counted(
        batches: Iterator[list[dict[str, Any]]],
        total: int,
        errors: list[str],
) -> Iterator[list[dict[str, Any]]]:
    """The batches as they are, with a bar or now and then a line; why images cannot be read is added to `errors`."""
    done, began = 0, time.perf_counter()

    def words() -> str:
        return f'{done:,} of {total:,} images, {done / (time.perf_counter() - began):.1f} images/s'

    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit='image', dynamic_ncols=True, leave=False, disable=not terminal) as bar, \
            doing(None if terminal else words):
        for rows in batches:
            errors += [f'{row["path"]}: {row["error"]}' for row in rows if 'error' in row]
            yield rows
            done += len(rows)
            bar.update(len(rows))


def _report(result: dict[str, Any], errors: Sequence[str], device: torch.device) -> None:
    for reason in errors[:_MOST_LISTED]:
        _logger.warning(f'Not read: {reason}')
    if errors:
        more = f', {len(errors) - _MOST_LISTED} of them not listed here' if len(errors) > _MOST_LISTED else ''
        _logger.warning(f'{len(errors)} of {result["images"]} images could not be read{more}.')
    share = ''
    if 'share' in result:
        share = (
            f', {100 * result["share"]:.0f} % of the {result["model_images_per_second"]} of the model by itself on '
            f'{device}')
    _logger.info(
        f'{result["images"]:,} images in {result["seconds"]:.1f} s: {result["images_per_second"]} images/s{share}')


@torch.inference_mode()
def model_rate(trained: TrainedModel, batch_size: int, autocast: Callable = nullcontext) -> float:
    """Images a second of the model by itself, on a batch that is on its device already."""
    pixels = torch.randint(0, 256, (batch_size, *trained.data_config['input_size']), dtype=torch.uint8)
    pixels = pixels.to(trained.device)

    def step() -> None:
        with autocast():
            trained.logits(pixels)
        synchronize(trained.device)

    step()  # kernels are chosen in the first
    began, passes = time.perf_counter(), 0
    while passes < _PASSES or time.perf_counter() - began < _SECONDS:
        step()
        passes += 1
    return passes * batch_size / (time.perf_counter() - began)


def _line(row: dict[str, Any]) -> str:
    """A row for people: the path, then each answer."""
    if 'error' in row:
        return f'{row["path"]}  not read: {row["error"]}'
    answers: dict[str, Any] = {'': row, **{name: row[name] for name in ('cls', 'dist') if name in row}}
    words = [
        f'{name}{":" if name else ""} ' + ', '.join(
            f'{label} {100 * probability:.1f} %'
            for label, probability in zip(answer['labels'], answer['probabilities'], strict=True))
        for name, answer in answers.items()]
    return f'{row["path"]} {"  ".join(words)}'


def _columns(trained: TrainedModel, topk: int, experts: bool) -> list[str]:
    """Columns of a table: path, label and probability of the answer's classes and of each expert's, error."""
    prefixes = ['', *(f'{name}_' for name in trained.experts if experts and name != 'mean')]
    classes = range(1, min(topk, len(trained.label_names)) + 1)
    return ['path', *(
        f'{prefix}{name}_{place}' for prefix in prefixes for place in classes for name in ('label', 'probability')
    ), 'error']


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table."""
    flat: dict[str, Any] = {name: row[name] for name in ('path', 'error') if name in row}
    for prefix, answer in (('', row), *((f'{name}_', row.get(name, {})) for name in ('cls', 'dist'))):
        for name, values in (('label', answer.get('labels', ())), ('probability', answer.get('probabilities', ()))):
            flat.update({f'{prefix}{name}_{place}': value for place, value in enumerate(values, start=1)})
    return flat


def _write(path: Path, form: str, columns: Sequence[str], batches: Iterable[list[dict[str, Any]]]) -> None:
    with _FORMS[form](path, columns) as add:
        for rows in batches:
            add(rows)


@contextmanager
def _csv(path: Path, columns: Sequence[str]) -> Iterator[Callable]:
    # a path need not be UTF-8, and is written as it is
    with open(path, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        writer.writeheader()
        yield lambda rows: writer.writerows(map(_flat, rows))


@contextmanager
def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[Callable]:
    with open(path, 'w', encoding='utf-8') as file:
        yield lambda rows: file.writelines(f'{json.dumps(row)}\n' for row in rows)


@contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Callable]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    schema = pa.schema([(name, pa.float32() if 'probability_' in name else pa.string()) for name in columns])

    def add(rows: list[dict[str, Any]]) -> None:
        # parquet takes UTF-8 alone, which a path need not be
        plain = [{**_flat(row), 'path': os.fsencode(row['path']).decode(errors='replace')} for row in rows]
        writer.write_table(pa.Table.from_pylist(plain, schema))

    with pq.ParquetWriter(path, schema) as writer:
        yield add


_FORMS = {'.csv': _csv, '.jsonl': _jsonl, '.parquet': _parquet}

"""Measure variants of a step side by side: each has its own process, and they take turns, one step each.

So other work on the machine slows all variants alike, and no variant uses the allocator, threads or compiled code of
another.
"""
import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from timm_deitlt.utils.versions import versions

Step = Callable[[], object]


@dataclass
class Measured:
    """Of a variant: median seconds of a step, those of the first with what comes before, and peak memory of the process
    in the steps after it in GiB."""
    seconds: float
    first: float
    memory: float


def main(
        doc: str,
        variants: Mapping[str, Callable[[argparse.Namespace], Step]],
        usual: Sequence[str] | None = None,
        **defaults: str | int,
) -> None:
    """A script that measures variants, or is the child of one: `variants` build their step from the command line.

    Args:
        doc: The script's docstring.
        variants: By name.
        usual: Those measured where none are named; None for all.
        defaults: Values of --model, --teacher, --img-size, --batch-size and --rounds.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=type(value), default=value)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--variants', nargs='+', choices=variants, default=usual or list(variants))
    parser.add_argument('--profile', choices=variants, help="profile a step of one variant, torch's operators alone")
    parser.add_argument('--child', choices=variants, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        serve(lambda: variants[asked.child](asked), torch.device(asked.device))
    elif asked.profile:
        print(profile(variants[asked.profile](asked)))
    else:
        measured = compare(asked.variants, asked.rounds)
        what = [getattr(asked, 'model', ''), f'{asked.img_size} px', f'batch {asked.batch_size}']
        print(table(measured, asked.batch_size, ', '.join(filter(None, what))))


def profile(step: Step) -> str:
    """Where the time of a step goes, by operator."""
    for _ in range(3):
        step()
    with torch.profiler.profile() as recorded:
        step()
    return recorded.key_averages().table(sort_by='self_cpu_time_total', row_limit=15, max_name_column_width=40)


def compare(variants: Sequence[str], rounds: int) -> dict[str, Measured]:
    """Run this script once for each variant as its `serve`d child, and let them take turns.

    Args:
        variants: Names that the script knows.
        rounds: Steps of each that count; two more come before.
    """
    command = [sys.executable, *sys.argv, '--child']
    children = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in variants}
    try:
        first, seconds = {}, {name: [] for name in variants}
        for name in variants:  # one after the other: none is built or compiled while another is
            first[name] = _ask(children[name], 'step')
        for turn in range(rounds + 1):
            for name in variants:
                taken = _ask(children[name], 'step')
                if turn:
                    seconds[name].append(taken)
        return {
            name: Measured(median(seconds[name]), first[name], _ask(children[name], 'memory')) for name in variants}
    finally:
        for child in children.values():
            child.communicate()


def _ask(child: subprocess.Popen, what: str) -> float:
    try:
        child.stdin.write(f'{what}\n')
        child.stdin.flush()
        return json.loads(child.stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError):
        raise SystemExit(
            f'{" ".join(child.args)}\nended with code {child.wait()}; -9 is too little memory for all variants at '
            'once: name fewer with --variants') from None


def serve(build: Callable[[], Step], device: torch.device) -> None:
    """Be a child: build a step and make it whenever the parent asks."""
    out = sys.stdout
    sys.stdout = sys.stderr
    step = None
    for line in sys.stdin:
        began = time.perf_counter()
        if line == 'memory\n':
            answer = peak_memory(device)
        else:
            first = step is None
            step = step or build()
            step()
            if device.type != 'cpu':
                torch.accelerator.synchronize(device)
            answer = time.perf_counter() - began
            if first:  # what was tried in order to choose is over
                forget_peak_memory(device)
        print(json.dumps(answer), file=out, flush=True)


def peak_memory(device: torch.device) -> float:
    """Most GiB that this process had, of a GPU's memory if it computes there."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    unit = 1 if sys.platform == 'darwin' else 2 ** 10  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew; not possible on the CPU of other systems than Linux."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    elif (counters := Path('/proc/self/clear_refs')).exists():
        counters.write_text('5', encoding='utf-8')


def table(measured: dict[str, Measured], images: int, what: str) -> str:
    """A Markdown table of images/s, with ratios to the first variant, and the machine below."""
    base = next(iter(measured.values()))
    lines = [
        f'| {what} | images/s | ratio | first step, s | peak memory, GiB |', '| --- | ---: | ---: | ---: | ---: |']
    lines += [
        f'| {name} | {images / m.seconds:.1f} | {base.seconds / m.seconds:.2f} | {m.first:.2f} | {m.memory:.2f} |'
        for name, m in measured.items()]
    return '\n'.join([*lines, '', machine()])


def machine() -> str:
    """Versions and machine in a line."""
    known = versions()
    return (
        f'timm_deitlt {known["timm_deitlt"]} ({known["git"]}), timm {known["timm"]}, torch {known["torch"]}, '
        f'{torch.get_num_threads()} threads, {known["machine"]}')

"""Seconds of training until the mean of both experts is as good as at the end of the quick start.

    python speed/time_to_accuracy.py FOLDER

Runs the quick start as it is, and with small images first, for each seed. Teachers and runs are kept in FOLDER; what is
finished there is not trained again.
"""
import argparse
import csv
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from pairs import machine

ROOT = Path(__file__).parents[1]
PLAIN = 'the recipe'
VARIANTS = {
    PLAIN: (),
    'small images first': (
        '--train-img-sizes', '32', '48', '64', '--train-size-schedule', 'progressive', '--train-size-random-mix', '0'),
}


def rows(folder: Path, seed: int, variant: str) -> list[dict[str, float]]:
    """The epochs of a run, trained where it is not there."""
    name = f'{variant.replace(" ", "-")}-{seed}'
    if not (folder / name / 'metrics.json').is_file():
        command = [
            sys.executable, 'train.py', '--model', 'deit_lt_small', '--teacher', 'resnet32_sam', '--seed', str(seed),
            '--teacher-cache', folder.resolve(), '--output', folder.resolve(), '--experiment', name, '--resume', 'auto',
            '--no-report', *VARIANTS[variant]]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f'{" ".join(map(str, command))} failed:\n{done.stderr[-2000:]}')
    with open(folder / name / 'summary.csv', encoding='utf-8') as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def seconds_to(top1: float, epochs: list[dict[str, float]]) -> float | None:
    """Seconds of training, without evaluation and what comes before the first update, to the end of the first epoch as
    good as that; None for never."""
    passed = 0.
    for epoch in epochs:
        passed += epoch['train_seconds']
        if epoch.get('eval_mean_top1', -1.) >= top1:
            return passed
    return None


def main() -> None:
    """Print a row a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='where to keep the runs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3])
    asked = parser.parse_args()
    runs = {variant: [] for variant in VARIANTS}
    for seed in asked.seeds:
        for variant, epochs in runs.items():
            epochs.append(rows(asked.folder, seed, variant))
    goals = [epochs[-1]['eval_mean_top1'] for epochs in runs[PLAIN]]
    print('| | seeds | seconds of training | final top-1 | reached the recipe\'s | seconds until then |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |')
    for variant, found in runs.items():
        until = [seconds_to(goal, epochs) for goal, epochs in zip(goals, found, strict=True)]
        reached = [seconds for seconds in until if seconds is not None]
        print(
            f'| {variant} | {len(found)} | {spread([sum(e["train_seconds"] for e in epochs) for epochs in found])} | '
            f'{spread([epochs[-1]["eval_mean_top1"] for epochs in found])} | {len(reached)} | '
            f'{spread(reached) if len(reached) == len(found) else "not by all"} |')
    print(f'\n{machine()}')


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    if len(values) < 2:
        return f'{values[0]:.1f}' if values else ''
    return f'{mean(values):.1f} ± {stdev(values):.1f}'


if __name__ == '__main__':
    main()

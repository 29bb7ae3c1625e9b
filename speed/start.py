"""Seconds that a user waits for the imports, for the help, and for the first update of the quick start.

    python speed/start.py
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pairs import machine

ROOT = Path(__file__).parents[1]
# ends at the first update, which is the teacher's
FIRST_UPDATE = '''
import os
from timm_deitlt.engine import trainer as engine
from timm_deitlt.cli.commands import train_main
update = engine.Trainer.update
def first(*args, **kwargs):
    update(*args, **kwargs)
    os._exit(0)
engine.Trainer.update = first
train_main(['--model', 'deit_lt_small', '--teacher', 'resnet32_sam', '--teacher-cache', FOLDER, '--output', FOLDER])
'''


def seconds(*command: str) -> float:
    """Of a command until it ends."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} failed:\n{done.stderr[-2000:]}')
    return time.perf_counter() - began


def main() -> None:
    """Let the commands take turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='rounds after a first one, which counts if this is 0')
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            'import timm': ('-c', 'import timm'),
            'import timm, timm_deitlt': ('-c', 'import timm, timm_deitlt'),
            'train.py --help': ('train.py', '--help'),
            'quick start, to the end of its first update': ('-c', FIRST_UPDATE.replace('FOLDER', repr(folder))),
        }
        taken = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, command in commands.items():
                elapsed = seconds(sys.executable, *command)
                if turn or not rounds:  # in the first, files come from the disk
                    taken[name].append(elapsed)
    print('\n'.join(['| | s |', '| --- | ---: |', *(f'| {name} | {median(s):.2f} |' for name, s in taken.items())]))
    print(f'\n{machine()}')


if __name__ == '__main__':
    main()

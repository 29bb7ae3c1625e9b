"""Check and measure everything on one GPU in a few minutes, the most important first.

    python speed/gpu.py --minutes 8 --output results/gpu/NAME.jsonl
    python speed/gpu.py --minutes 8 --output results/gpu/NAME.jsonl --parts test_runs
    python speed/gpu.py --smoke

Every result is a line of JSON that is in --output at once, so a run that is cut off keeps what it has. The parts and
their order are in PARTS. Each part is a process of its own that ends when its time is over; time that a part leaves
goes to the next. The tests of whole runs take minutes, so they are run only if --parts names them. A machine without
network takes missing packages from --wheels; the script says which and stops. --smoke runs every part in a tiny size on
the CPU.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# name of the part, a function of gpu_parts.py, and its share of the time
PARTS = {'test_updates': 50, 'test_step_graph': 80, 'rates': 150, 'epochs': 100, 'small_data': 100, 'test_runs': 400}
USUAL = [name for name in PARTS if name != 'test_runs']


def missing_packages() -> list[str]:
    """Requirements of the package and of the checks that this Python does not have."""
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    needed = [*config['options']['install_requires'].split(), 'pytest>=8']
    return [requirement for requirement in needed if not _is_met(requirement)]


def _is_met(requirement: str) -> bool:
    name, _, least = requirement.partition('>=')
    try:
        return _numbers(version(name)) >= _numbers(least)
    except PackageNotFoundError:
        return False


def _numbers(words: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', words.partition('+')[0])]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=8., help='time for all parts together (default: 8)')
    parser.add_argument(
        '--output', type=Path, default=Path('output/gpu.jsonl'), metavar='FILE',
        help='file to append the results to (default: output/gpu.jsonl)')
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, metavar='PART',
        help=f'which of {", ".join(PARTS)} (default: all but test_runs, with --smoke all)')
    parser.add_argument('--smoke', action='store_true', help='every part in a tiny size on the CPU')
    parser.add_argument(
        '--wheels', type=Path, default=Path('wheels'), metavar='FOLDER', help='where wheels of missing packages lie')
    parser.add_argument(
        '--fashion-mnist', type=Path, default=Path('/usr/share/datasets/fashion-mnist'), metavar='FOLDER',
        help='files of Fashion-MNIST, for the runs of the study small_data')
    parser.add_argument('--commit', help='commit of the code, where it does not lie in a clone')
    parser.add_argument('--child', choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.parts = asked.parts or (list(PARTS) if asked.smoke else USUAL)
    asked.output, asked.wheels = asked.output.resolve(), asked.wheels.resolve()
    return asked


def write(output: Path, line: dict) -> None:
    """Append a result, so that it is kept whatever follows."""
    text = json.dumps(line)
    print(text, flush=True)
    with open(output, 'a', encoding='utf-8') as file:
        file.write(text + '\n')
        file.flush()
        os.fsync(file.fileno())


def run_part(name: str, asked: argparse.Namespace, seconds: float) -> int:
    """Run a part in a process of its own, for so many seconds at most.

    Returns:
        Its exit code. If its time was over, 1 for tests, some of which did not run, and 0 for what is measured.
    """
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], '--child', name], start_new_session=True)
    try:
        code = child.wait(timeout=max(0., seconds))
        ended = 'done' if not code else f'failed with code {code}'
    except subprocess.TimeoutExpired:
        code, ended = int(name.startswith('test_')), 'its time was over'
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    write(asked.output, {'part': name, 'ended': ended, 'seconds': round(time.monotonic() - began, 1)})
    return code


def main() -> None:
    """Run the parts, or one of them."""
    asked = parse()
    if missing := missing_packages():
        quoted = ' '.join(f"'{requirement}'" for requirement in missing)
        raise SystemExit(
            f'{", ".join(missing)} missing here. Install from the folder of wheels (--wheels) and start again:\n'
            f'  {sys.executable} -m pip install --no-index --find-links {asked.wheels} {quoted}')
    sys.path.insert(0, str(ROOT))  # the package need not be installed
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    import gpu_parts

    if asked.child:
        getattr(gpu_parts, asked.child)(asked, lambda **result: write(asked.output, {'part': asked.child, **result}))
        return
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    write(asked.output, {'part': 'machine', **gpu_parts.about(asked)})
    shares = [PARTS[name] for name in asked.parts]
    codes = [
        run_part(name, asked, 60 * asked.minutes * end / sum(shares) - (time.monotonic() - began))
        for name, end in zip(asked.parts, accumulate(shares), strict=True)]
    raise SystemExit(max(map(abs, codes)))


if __name__ == '__main__':
    main()

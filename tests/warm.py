"""Scripts as processes of their own that need not import everything anew: forks of a process that has.

Importing torch and what comes with it takes seconds, a fork milliseconds. timm, the client of the Hub and this package
read HF_ENDPOINT and the like when they are imported, which takes them half a second: scripts that are given such a
variable are forked from a process that holds torch alone.
"""
import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

# Variables that are read when torch or Python starts, and when timm and the client of the Hub are imported
WITH_TORCH, WITH_TIMM = ('OMP_', 'PYTHON', 'TORCH'), ('HF_', 'TIMM_')
# ... and those of the same prefix that are not; a script gets its PYTHONPATH as a new interpreter would
LATE = ('HF_TOKEN', 'PYTHONPATH')
_SERVE = '''
import contextlib, importlib, json, os, runpy, signal, sys, traceback
import numpy, scipy, sklearn.datasets, torch, torchvision, yaml
with contextlib.suppress(ImportError):
    import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, matplotlib.figure
torch.set_num_threads(1)

def begin(job):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets its background jobs ignore
    for fd, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    before = os.environ.get('PYTHONPATH')
    os.environ.clear()
    os.environ.update(job['env'])
    os.chdir(job['cwd'])
    if job['env'].get('PYTHONPATH') not in (None, before):
        sys.path[:0] = job['env']['PYTHONPATH'].split(os.pathsep)
        sys.modules.pop('sitecustomize', None)
        with contextlib.suppress(ImportError):
            importlib.import_module('sitecustomize')

def run(job):
    sys.argv = [job['script'], *job['args']]
    sys.path.insert(0, os.path.dirname(job['script']))
    code = 1
    try:
        runpy.run_path(job['script'], run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code

def serve(asked, told):
    def tell(**what):
        print(json.dumps(what), file=told, flush=True)

    for line in asked:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            begin(job)
            if job.get('modules') is None:
                os._exit(run(job))
            ends = open(job['asked']), open(job['told'], 'w')  # before what may fail, or the other side would wait
            for name in job['modules']:
                importlib.import_module(name)
            timm = sys.modules['timm']  # what torch imports at its first pass without values, as for a card's GMACs
            timm.create_model('test_vit', device='meta')(torch.empty(1, 3, 160, 160, device='meta'))
            serve(*ends)
            os._exit(0)
        tell(pid=pid)
        if job.get('modules') is None:
            tell(code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()

serve(sys.stdin, sys.stdout)
'''
_MODULES = [
    'timm', 'timm.task', 'huggingface_hub', 'safetensors.torch', 'timm_deitlt', 'timm_deitlt.cli.commands',
    'timm_deitlt.hub.publish']


class _Process:
    """A process of which scripts are forks: `asked` and `told` are the ends of its pipes."""

    def __init__(self, asked, told, folder: Path, env: Mapping[str, str], early: tuple[str, ...]):
        self.folder, self.env, self.early = folder, env, early
        self.jobs = 0
        self._asked, self._told = asked, told
        self._in_turn = threading.RLock()  # an answer belongs to the thread that asked

    def _ask(self, env: Mapping[str, str | None], cwd: Path | str | None = None, **job) -> tuple[int, dict[str, Path]]:
        if early := [name for name in env if name.startswith(self.early) and name not in LATE]:
            raise ValueError(f'{", ".join(early)} would come too late: give them to a process of its own')
        whole = {**os.environ, **self.env, **env}
        with self._in_turn:
            self.jobs += 1
            files = {name: self.folder / f'{self.jobs}.{name}' for name in ('stdout', 'stderr')}
            self._asked.write(json.dumps({
                'cwd': str(cwd or self.folder),
                'env': {name: value for name, value in whole.items() if value is not None},
                **{name: str(file) for name, file in files.items()}, **job}) + '\n')
            self._asked.flush()
            return self._answer()['pid'], files

    def _answer(self) -> dict[str, int]:
        if not (line := self._told.readline()):
            raise RuntimeError(f'the process of which scripts are forks has ended; its output is in {self.folder}')
        return json.loads(line)

    def run(
            self,
            script: Path,
            *args,
            cwd: Path | str | None = None,
            env: Mapping[str, str | None] | None = None,
            started: Callable[[int], None] = lambda pid: None,
    ) -> SimpleNamespace:
        """Run a script in the environment of the caller and of this process.

        Args:
            script: Its file.
            args: Its arguments.
            cwd: Its working folder.
            env: Further variables; one that is None is unset.
            started: Called with its process id.

        Raises:
            ValueError: If `env` holds a variable that is read when something is imported, which it was already.
        """
        with self._in_turn:
            pid, files = self._ask(env or {}, cwd, script=str(script), args=list(map(str, args)))
            started(pid)
            code = self._answer()['code']
        return SimpleNamespace(returncode=code, **{name: file.read_text() for name, file in files.items()})

    def close(self) -> None:
        self._asked.close()
        self._told.close()


class TorchProcess(_Process):
    """A process that has imported torch and what comes with it, but neither timm nor the client of the Hub."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, '-c', _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'HOME': self._folder.name, 'XDG_CACHE_HOME': self._folder.name})
        super().__init__(self._process.stdin, self._process.stdout, Path(self._folder.name), {}, WITH_TORCH)

    def serve(self, folder: Path, env: Mapping[str, str]) -> tuple:
        """Fork a process that imports the rest under an environment; gives the ends of its pipes."""
        pipes = [folder / name for name in ('asked', 'told')]
        for pipe in pipes:
            os.mkfifo(pipe)
        self._ask(env, asked=str(pipes[0]), told=str(pipes[1]), modules=_MODULES)
        return open(pipes[0], 'w'), open(pipes[1])

    def close(self) -> None:
        super().close()
        self._process.wait()
        self._folder.cleanup()


class WarmProcess(_Process):
    """A process that has imported everything, under an environment of its own; a context manager.

    Args:
        env: Environment of it and of the scripts.
        folder: Where their output is kept.
    """

    def __init__(self, env: Mapping[str, str], folder: Path):
        super().__init__(*torch_process().serve(folder, env), folder, env, WITH_TORCH + WITH_TIMM)

    def __enter__(self) -> 'WarmProcess':
        return self

    def __exit__(self, *_) -> None:
        self.close()


@functools.cache
def torch_process() -> TorchProcess:
    """The one of this worker."""
    process = TorchProcess()
    atexit.register(process.close)
    return process

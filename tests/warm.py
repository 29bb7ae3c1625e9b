"""Scripts as processes of their own that need not import torch and timm anew: forks of one that has.

The client of the Hub reads HF_ENDPOINT and the like when it is imported, so scripts that talk to a server of the tests
must be child processes; importing takes seconds, a fork milliseconds.
"""
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

# Variables that are read when modules are imported, and those of the same prefix that are not
EARLY, LATE = ('HF_', 'OMP_', 'PYTHON', 'TIMM_', 'CUDA_', 'TORCH'), ('HF_TOKEN',)
_SERVE = '''
import json, os, runpy, sys, traceback
import timm, timm.task, torch, torchvision, sklearn.datasets, huggingface_hub, safetensors.torch
import timm_deitlt, timm_deitlt.cli, timm_deitlt.publishing.build, timm_deitlt.publishing.remote
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        for fd, name in ((1, 'stdout'), (2, 'stderr')):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        os.environ.update(job['env'])
        for name in job['without']:
            os.environ.pop(name, None)
        os.chdir(job['cwd'])
        sys.argv = [job['script'], *job['args']]
        sys.path.insert(0, os.path.dirname(job['script']))
        code = 1
        try:
            runpy.run_path(job['script'], run_name='__main__')
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(json.dumps({'pid': pid}), flush=True)
    print(json.dumps({'code': os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
'''


class WarmProcess:
    """A process with everything imported, under an environment of its own; a context manager.

    Args:
        env: Environment of it and of the scripts.
        folder: Where their output is kept.
    """

    def __init__(self, env: Mapping[str, str], folder: Path):
        self.folder = folder
        self.jobs = 0
        self._process = subprocess.Popen(
            [sys.executable, '-c', _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **env})

    def __enter__(self) -> 'WarmProcess':
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def run(
            self,
            script: Path,
            *args,
            cwd: Path | None = None,
            env: Mapping[str, str | None] | None = None,
            started: Callable[[int], None] = lambda pid: None,
    ) -> SimpleNamespace:
        """Run a script; `started` gets its process id. A variable of `env` that is None is unset.

        Raises:
            ValueError: If `env` holds a variable that is read when something is imported, which it was already.
        """
        if early := [name for name in env or {} if name.startswith(EARLY) and name not in LATE]:
            raise ValueError(f'{", ".join(early)} would come too late: give them to a process of its own')
        self.jobs += 1
        files = {name: str(self.folder / f'{self.jobs}.{name}') for name in ('stdout', 'stderr')}
        env = env or {}
        self._process.stdin.write(json.dumps({
            'script': str(script), 'args': list(map(str, args)), 'cwd': str(cwd or self.folder), **files,
            'env': {name: value for name, value in env.items() if value is not None},
            'without': [name for name, value in env.items() if value is None]}) + '\n')
        self._process.stdin.flush()
        started(json.loads(self._process.stdout.readline())['pid'])
        code = json.loads(self._process.stdout.readline())['code']
        return SimpleNamespace(
            returncode=code, **{name: Path(file).read_text() for name, file in files.items()})

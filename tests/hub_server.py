"""A stand-in for the Hugging Face Hub on 127.0.0.1, to publish to and download from with the real clients.

It knows the requests of publishing and downloading a model, and gives huggingface_hub 2.4 and timm 1.0.31 the answers,
statuses, error headers and messages of the Hub. LFS objects are behind a second port, which is another origin and
refuses tokens. `HubServer.fail` injects faults. A request that it does not know is answered by 501.

It does not imitate: Xet; multipart uploads; rate limits, quotas and gated repositories (`fail` can answer like them);
the exact rules for cards (a few fields are checked); .gitignore and .gitattributes (a fixed rule tells what is an LFS
object); an LFS store for each repository (all share one); signed links that expire; tokens with finer rights; answers
in pages; redirects and compression of regular files; deleted folders; data sets and Spaces.
"""
import base64
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from hub_state import Answer, State, User, is_lfs, read_card, refusal, sha256


@dataclass
class Request:
    """A request as it came; `status` is that of the answer, None if there was none."""
    origin: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b''
    status: int | None = None
    user: User | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.path.partition('?')[2])

    def json(self) -> Any:
        return json.loads(self.body)

    def require_writer(self, namespace: str, pull_request: bool = False) -> None:
        """Refuse a user who may not write there; anybody may make a pull request."""
        if self.user is None:
            raise refusal(401, 'Invalid username or password.')
        if self.user.role == 'read':
            raise refusal(403, 'Forbidden: this token may only read, use one with the role "write"')
        if namespace not in (self.user.name, *self.user.orgs) and not pull_request:
            raise refusal(403, f'Forbidden: you have no rights to write under the namespace "{namespace}"')

    def send(self, data: bytes, headers: dict) -> Answer:
        """A file, or the part of it that is asked for."""
        wanted = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('range', ''))
        if not wanted:
            return Answer(data, 200, {'Accept-Ranges': 'bytes', **headers})
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            return Answer(b'', 416, {'Content-Range': f'bytes */{len(data)}'})
        return Answer(data[first:last + 1], 206, {**headers, 'Content-Range': f'bytes {first}-{last}/{len(data)}'})


class Hub(State):
    """Answers to requests."""

    def answer(self, request: Request) -> Answer:
        with self.lock:
            try:
                answer = self._storage(request) if request.origin == 'storage' else self._hub(request)
                return answer if isinstance(answer, Answer) else Answer(answer)
            except Answer as refused:
                return refused

    def _storage(self, request):
        oid = request.path.partition('?')[0].rpartition('/')[2]
        if 'authorization' in request.headers:
            raise refusal(400, 'Only one auth mechanism allowed: the link is signed, and the request has a token')
        if request.method == 'PUT' and sha256(request.body) != oid:
            raise refusal(400, 'The content has another sha256 than announced')
        if request.method == 'PUT':
            self.lfs[oid] = request.body
            return {}
        if oid not in self.lfs:
            raise refusal(404, 'There is no such object')
        return request.send(self.lfs[oid], {'ETag': f'"{oid}"'})

    def _hub(self, request):
        token = request.headers.get('authorization', '').removeprefix('Bearer ')
        request.user = self.users.get(token)
        if token and not request.user:
            raise refusal(401, 'Invalid credentials in Authorization header')
        method = 'GET' if request.method == 'HEAD' else request.method
        # decoded after the split, as a revision may hold an encoded slash
        match method, [unquote(part) for part in request.path.partition('?')[0].strip('/').split('/')]:
            case 'GET', ['api', 'whoami-v2']:
                return self._whoami(request)
            case 'POST', ['api', 'repos', 'create']:
                return self._create_repo(request)
            case 'POST', ['api', 'validate-yaml']:
                return self._validate_yaml(request)
            case 'GET', ['api', 'models', owner, name, *rest]:
                return self._read(request, self._readable(request, owner, name), rest)
            case 'POST', ['api', 'models', owner, name, action, revision]:
                return self._write(request, self._writable(request, owner, name), action, revision)
            case 'POST', [owner, name, 'info', 'lfs', 'objects', action]:
                return self._upload(request, self._writable(request, owner, name.removesuffix('.git')), action)
            case 'GET', [owner, name, 'resolve', revision, *path]:
                return self._resolve(request, self._readable(request, owner, name).find(revision), '/'.join(path))
        raise refusal(501, f'{request.method} {request.path} is not imitated by tests/hub_server.py')

    def _readable(self, request, owner, name):
        repo = self.repos.get(f'{owner}/{name}')
        if repo is None or (repo.private and not (request.user and owner in (request.user.name, *request.user.orgs))):
            raise refusal(404, 'Repository not found', 'RepoNotFound')
        return repo

    def _writable(self, request, owner, name):
        repo = self._readable(request, owner, name)
        request.require_writer(owner, pull_request='create_pr' in request.query)
        return repo

    def _whoami(self, request):
        if request.user is None:
            raise refusal(401, 'Invalid username or password.')
        orgs = [{'type': 'org', 'name': org} for org in request.user.orgs]
        auth = {'type': 'access_token', 'accessToken': {'displayName': 'test', 'role': request.user.role}}
        return {'type': 'user', 'name': request.user.name, 'orgs': orgs, 'auth': auth}

    def _create_repo(self, request):
        asked = request.json()
        owner = asked.get('organization') or (request.user and request.user.name)
        request.require_writer(owner)
        name = f'{owner}/{asked["name"]}'
        if name in self.repos:
            raise refusal(409, 'You already created this model repo', url=f'{self.url}/{name}')
        self.create(name, private=asked.get('visibility') == 'private')
        return {'url': f'{self.url}/{name}', 'name': name}

    def _validate_yaml(self, request):
        card, errors = read_card(request.json()['content'].encode())
        if errors:
            raise refusal(400, errors[0], errors=[{'message': error} for error in errors], warnings=[])
        return {'errors': [], 'warnings': [] if card else [{'message': 'empty or missing yaml metadata in repo card'}]}

    def _read(self, request, repo, rest):
        match rest:
            case [] | ['revision', _]:
                return self._info(request, repo, repo.find(rest[1] if rest else 'main'))
            case ['refs']:
                refs = {'branches': ('refs/heads/', repo.branches), 'tags': ('refs/tags/', repo.tags)}
                refs |= {'pullRequests': ('', repo.pulls), 'converts': ('', {})}
                return {kind: [
                    {'name': name, 'ref': prefix + name, 'targetCommit': oid} for name, oid in names.items()
                ] for kind, (prefix, names) in refs.items()}
            case ['discussions', number]:
                return self._pull_request(repo, int(number))
        raise refusal(501, f'{request.path} is not imitated by tests/hub_server.py')

    def _pull_request(self, repo, number):
        ref = f'refs/pr/{number}'
        commit = repo.find(ref)
        return {
            'num': number, 'title': commit.message, 'status': 'closed' if ref in repo.closed else 'open',
            'author': {'name': commit.author}, 'createdAt': commit.date, 'repo': {'name': repo.name, 'type': 'model'},
            'isPullRequest': True, 'changes': {'base': 'refs/heads/main'}, 'filesWithConflicts': [], 'events': [],
        }

    def _info(self, request, repo, commit):
        card = read_card(commit.files.get('README.md', b''))[0]
        siblings = [{'rfilename': path} for path in sorted(commit.files)]
        for sibling in siblings if 'blobs' in request.query else []:
            entry = commit.entry(sibling['rfilename'])
            sibling.update({'size': entry['size'], 'blobId': entry['oid'], 'lfs': entry.get('lfs')})
        return {
            'id': repo.name, 'author': repo.name.split('/')[0], 'sha': commit.oid, 'private': repo.private,
            'gated': False, 'lastModified': commit.date, 'siblings': siblings, 'cardData': card or None,
            **{name: card[name] for name in ('tags', 'library_name', 'pipeline_tag') if name in card},
        }

    def _resolve(self, request, commit, path):
        headers = {'X-Repo-Commit': commit.oid}
        if path not in commit.files:
            raise refusal(404, 'Entry not found', 'EntryNotFound', headers)
        oid = commit.content_id(path)
        if path not in commit.lfs:
            return request.send(commit.files[path], {**headers, 'ETag': f'"{oid}"'})
        # the name is there for the patterns of `fail`
        link = {'Location': f'{self.storage_url}/objects/{oid}?filename={quote(path)}'}
        return Answer(b'', 302, {
            **headers, **link, 'X-Linked-Etag': f'"{oid}"', 'X-Linked-Size': str(len(commit.files[path]))})

    def _upload(self, request, repo, action):
        asked = request.json()
        if action == 'verify':
            if len(self.lfs.get(asked['oid'], b'')) != asked['size']:
                raise refusal(404, 'The object was not uploaded, or has another size')
            return {}
        objects = [{'oid': wanted['oid'], 'size': wanted['size']} for wanted in asked['objects']]
        for wanted in objects:
            if wanted['oid'] not in self.lfs:
                verify = {'href': f'{self.url}/{repo.name}.git/info/lfs/objects/verify'}
                upload = {'href': f'{self.storage_url}/objects/{wanted["oid"]}'}
                wanted['actions'] = {'upload': upload, 'verify': verify}
        return {'transfer': 'basic', 'objects': objects}

    def _write(self, request, repo, action, revision):
        match action:
            case 'preupload':
                return {'files': [self._upload_mode(repo.find(revision), file) for file in request.json()['files']]}
            case 'commit':
                return self._create_commit(request, repo, revision)
            case 'tag':
                refs, name, target = repo.tags, request.json()['tag'], repo.find(revision)
            case 'branch':
                refs, name, target = repo.branches, revision, repo.find(request.json().get('startingPoint', 'main'))
            case _:
                raise refusal(501, f'{request.path} is not imitated by tests/hub_server.py')
        if name in refs:
            raise refusal(409, f'Reference already exists: {name}')
        refs[name] = target.oid
        return {}

    def _upload_mode(self, commit, file):
        lfs = is_lfs(file['path'], base64.b64decode(file['sample']), file['size'])
        oid = commit.content_id(file['path']) if file['path'] in commit.files else None
        return {'path': file['path'], 'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False, 'oid': oid}

    def _create_commit(self, request, repo, revision):
        header, *changes = [json.loads(line) for line in request.body.splitlines()]
        asked, pull_request = header['value'], 'create_pr' in request.query
        if not pull_request and revision not in {**repo.branches, **repo.pulls}:
            raise refusal(404, f'{revision} is not a branch', 'RevisionNotFound')
        parent = asked.get('parentCommit')
        base = repo.find(parent if pull_request and parent else revision)
        if parent not in (None, base.oid):
            raise refusal(412, 'A commit has happened since. Please refresh and try again.')
        files, lfs = self._apply(base, changes)
        number = len(repo.pulls) + 1
        ref = f'refs/pr/{number}' if pull_request else revision
        message = '\n\n'.join(filter(None, [asked['summary'], asked.get('description')]))
        commit, url = repo.add(ref, base.oid, files, lfs, message, request.user.name), f'{self.url}/{repo.name}'
        pull = {'pullRequestUrl': f'{url}/discussions/{number}'} if pull_request else {}
        return {'success': True, 'commitOid': commit.oid, 'commitUrl': f'{url}/commit/{commit.oid}', **pull}

    def _apply(self, base, changes):
        files, lfs = dict(base.files), set(base.lfs)
        for change in changes:
            value, path = change['value'], change['value']['path'].rstrip('/')
            match change['key']:
                case 'file':
                    files[path] = base64.b64decode(value['content'])
                    lfs.discard(path)
                case 'lfsFile':
                    if value['oid'] not in self.lfs:
                        raise refusal(400, f'An LFS pointer pointed to a file that does not exist: {path}')
                    files[path] = self.lfs[value['oid']]
                    lfs.add(path)
                case 'deletedFile':
                    if files.pop(path, None) is None:
                        raise refusal(404, f"A file with this name doesn't exist: {path}", 'EntryNotFound')
        readme = files.get('README.md', b'')
        if readme != base.files.get('README.md') and (errors := read_card(readme)[1]):
            raise refusal(400, errors[0])
        return files, lfs


# The servers

@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path, with query, matches a pattern."""
    method: str = ''
    pattern: str = ''  # searched; an LFS object's path ends in its file's name: /objects/SHA256?filename=NAME
    times: int = 0  # counts down
    status: int | None = None  # answer with this and `message`, without handling
    message: str = ''
    headers: dict[str, str] | None = None  # added to the answer
    drop: str | None = None  # close the connection 'before' handling, or 'after' it without an answer
    cut: int | None = None  # send only so many bytes of the body, then close the connection
    corrupt: bool = False  # change one byte of the body
    before: Callable[[], object] | None = None  # called before handling
    after: Callable[[], object] | None = None  # called after handling, before the answer is sent


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def _handle(self):
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.origin, self.command, self.path, headers)
        fault = hub.take_fault(request)
        length = int(headers.get('content-length', 0))
        request.body = self.rfile.read(length)
        if len(request.body) < length:
            raise ConnectionResetError('the client has gone')
        if fault.before:
            fault.before()
        if fault.drop == 'before':
            self.close_connection = True
            return
        told = [{'message': fault.message}]  # where a refused card is told; elsewhere the client drops the repetition
        answer = refusal(fault.status, fault.message, errors=told) if fault.status else hub.answer(request)
        if fault.after:
            fault.after()
        if fault.drop == 'after':
            self.close_connection = True
            return
        request.status = answer.status
        body = bytearray(answer.body)
        if fault.corrupt and body:
            body[len(body) // 2] ^= 1
        self.send_response(answer.status)
        for name, value in {**answer.headers, **(fault.headers or {}), 'Content-Length': str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[:fault.cut])
        if fault.cut is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def log_message(self, *args):
        """Keep the tests' output clean; `HubServer.requests` has it all."""


class _Server(ThreadingHTTPServer):
    def __init__(self, hub, origin):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.hub = hub
        self.origin = origin

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.hub.errors.append(sys.exc_info()[1])


class HubServer(Hub):
    """The Hub and its storage, running inside `with`.

    Attributes:
        url: What HF_ENDPOINT should be.
        lfs: Content of the stored LFS objects by sha256.
        requests: Every `Request` so far, to either origin.
        errors: Exceptions of the stand-in itself or of callables given to `fail`; the first is raised at the end.
    """

    def __init__(self):
        super().__init__()
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self._faults: list[Fault] = []
        self._servers = [_Server(self, 'hub'), _Server(self, 'storage')]
        self.url, self.storage_url = (f'http://127.0.0.1:{server.server_port}' for server in self._servers)

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()
        if self.errors:
            raise self.errors[0]

    def fail(self, method: str, pattern: str, times: int = 1, **what) -> Fault:
        """Let something go wrong: `what` takes the fields of `Fault`, which is returned."""
        fault = Fault(method, pattern, times, **what)
        if fault.drop not in (None, 'before', 'after'):
            raise ValueError(f"drop is {fault.drop!r}, it must be 'before', 'after' or None")
        self._faults.append(fault)
        return fault

    def forgive(self) -> None:
        """Forget the faults that are left."""
        with self.lock:
            self._faults.clear()

    def take_fault(self, request: Request) -> Fault:
        """Record a request and find what shall go wrong with it."""
        with self.lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times > 0 and fault.method == request.method and re.search(fault.pattern, request.path):
                    fault.times -= 1
                    return fault
        return Fault()

    def env(self, token: str | None = None, home: Path | str | None = None) -> dict[str, str]:
        """Variables, to be added to a child's own, that lead its client here and shorten its waits."""
        found = [str(Path(__file__).parent / 'fast_sleep'), os.environ.get('PYTHONPATH')]
        env = {
            'HF_ENDPOINT': self.url, 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1',
            'NO_PROXY': '127.0.0.1', 'no_proxy': '127.0.0.1', 'PYTHONPATH': os.pathsep.join(filter(None, found)),
        }
        return env | ({'HF_TOKEN': token} if token else {}) | ({'HF_HOME': str(home)} if home else {})

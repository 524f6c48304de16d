"""One daemon for all processes that want the same: the ranks of a job on this machine, or one process. The first starts it, the others join.

An owner is a connection to the daemon's socket that has announced itself; the daemon ends when it has none. Process ids are never polled, since they
mean nothing in another container: locks and connections end with their processes.

1. *Join*: connect, send `mixd-own` and a descriptor of the launcher's process; the daemon answers `+` and its key, a hash of data, options and
   job. An owner that leaves sends `q`, one that dies or fails does not: the daemon of a job that lost an owner so outlives a restart of its ranks,
   by `_LINGER_S` without any or until the launchers are gone.
2. *Start*: where no daemon answers, the process that locks `<socket>.start` starts it, and removes the file. Where the start fails it writes the
   reason into the file before. The next process to get the lock reports the reason of a file that was removed, and starts the daemon where the
   file is still at its path: its starter was killed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from ._native import default_socket
from .errors import DaemonGoneError, MixdError, NoDaemonError
from .job import Job, current_job, identity
from .launch import END_MAX_S, Launch, Launched, fork_lock, keep, program
from .limits import check_descriptors, descriptors_checked

T = TypeVar("T")

# Seconds for which processes that join wait for a daemon that another starts: it may unpack an archive.
_START_MAX_S = 1800.0
# Seconds between two attempts to join.
_RETRY_S = 0.03
# Seconds that a daemon takes to answer an owner that joins.
_ANSWER_MAX_S = 5.0
# Seconds in which a connection breaks whose daemon was seen to be gone.
_BREAK_MAX_S = 1.0
# Seconds for which a job's daemon waits without an owner for the job's next ranks.
_LINGER_S = 120
# Bytes of a path that a socket may have (sockaddr_un).
_PATH_MAX = 107
# A process, its user and its group (ucred).
_CREDENTIALS = struct.Struct("3i")
# Bytes of the longest answer to an owner: `+` and the key.
_ANSWER_BYTES = 65
# Options of `mixd serve` that may name files, and those files that it writes.
_FILE_OPTIONS, _WRITTEN = ("cache_file", "config", "labels", "recipe", "samples"), ("cache_file",)

# Options that may hold signed addresses, as the data may. They go by the environment: every user sees a process's arguments.
_HIDDEN = ("splits",)


class Part:
    """This process's part in a daemon, for all its servers and feeds: the daemon ends with the last part, or with the job."""

    def __init__(self, path: Path, key: str, connection: socket.socket, launched: Launched | None, is_job: bool) -> None:
        self.path, self.key, self._connection, self._launched, self._is_job = path, key, connection, launched, is_job
        self._users, self._file = 1, _file_at(path)

    def is_there(self, break_max_s: float = 0.0) -> bool:
        """Whether the daemon is: a broken connection can be read, within `break_max_s`."""
        if self._connection.fileno() < 0:
            return False
        broken = select.poll()
        broken.register(self._connection, select.POLLIN)
        return not broken.poll(break_max_s * 1000)

    def can_be_reached(self) -> bool:
        """Whether the daemon's socket is at its path still."""
        return self._file is not None and self._file == _file_at(self.path)

    def use(self, launched: Launched | None = None) -> bool:
        """Adds a user, unless the daemon is gone or out of reach; `launched` is the daemon where this user has started it."""
        # First, since a server that is collected meanwhile ends the last use.
        self._users += 1
        if self.is_there() and self.can_be_reached():
            self._launched = self._launched or launched
            return True
        self._users -= 1
        return False

    def explain(self, error: MixdError) -> None:
        """Adds to the error of a daemon that is gone how it ended, where this process started it; replaces that of one without a socket."""
        if not isinstance(error, DaemonGoneError | NoDaemonError):
            return
        if not self.is_there(_BREAK_MAX_S):
            if self._launched and (how := self._launched.how_it_ended()):
                error.args = (f"{error}: {how}",)
        elif isinstance(error, NoDaemonError) and not self.can_be_reached():
            error.args = (
                f"the daemon runs, but its socket {self.path} was removed, so that no feed can be opened or moved; a logout removes "
                "XDG_RUNTIME_DIR (call mixd.serve again; set XDG_RUNTIME_DIR to a folder that stays)",
            )

    def release(self, *, wait: bool = False, failed: bool = False) -> None:
        """Ends one user's use of it, and with the last one's this part; where that `failed`, a job's daemon waits for the job's restart.

        With `wait` the daemon of a process by itself has then ended.
        """
        with _lock:
            self._users -= 1
            if self._users or self._connection.fileno() < 0:
                return
            if _parts.get(self.path) is self:
                del _parts[self.path]
            _leave(self._connection, in_order=not (failed and self._is_job))
        if wait and self._launched and not self._is_job:
            self._launched.wait()
            # The shell above it may have been killed before it.
            _await(lambda: None, lambda: self.can_be_reached() and _is_locked(_lock_of(self.path)))


_parts: dict[Path, Part] = {}
_lock = threading.RLock()


def _forget() -> None:
    """Takes the parent's parts from a child that was forked; the lock may have been held by a thread that is not here."""
    global _lock
    _lock = threading.RLock()
    _parts.clear()


os.register_at_fork(after_in_child=_forget)


@descriptors_checked()
def part(data: Path | str, options: Mapping[str, object], given: Path | None) -> Part:
    """Takes part in the daemon that serves these data with these options to this process or its job, on the socket `given` or one of its own.

    Raises `NoDaemonError`, with the daemon's own message, where it does not come up, in all processes that wait for it.
    """
    job = current_job()
    options = {name: _resolved(name, value) for name, value in options.items() if value is not None and value is not False}
    if job and job.launcher and not given and (of_launcher := _part_of_launcher(data, options, job.launcher)):
        return of_launcher
    key = _key(data, options, job.id if job else _alone(os.getpid()))
    path = check_path(given.absolute() if given else folder() / f"{'job' if job else 'own'}-{key}.sock")
    with _lock:
        known = _parts.get(path)
        if known and known.key == key and known.use():
            return known
        is_cut_off = known is not None and known.is_there()
    command = [program(), "serve", "--socket", os.fspath(path), "--until-eof", "--key", key]
    command += ["--linger", str(_LINGER_S)] if job else []
    variables = {"MIXD_DATA": os.fspath(data)}
    for name, value in options.items():
        if name in _HIDDEN:
            variables[f"MIXD_{name.upper()}"] = str(value)
            continue
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [f"{flag}={value}"]
    connection, launched = _meet(path, Launch(command, variables), job, key, is_cut_off)
    return _added(path, key, connection, launched, job is not None)


def _part_of_launcher(data: Path | str, options: Mapping[str, object], launcher: int) -> Part | None:
    """Takes part in the daemon that a job's launcher has by itself, as Lightning's first rank has that serves before it makes itself a rank."""
    key = _key(data, options, _alone(launcher))
    path = folder() / f"own-{key}.sock"
    with _lock:
        known = _parts.get(path)
        if known and known.use():
            return known
    connection = _join(path, None, key)
    return _added(path, key, connection, None, False) if connection else None


def _added(path: Path, key: str, connection: socket.socket, launched: Launched | None, is_job: bool) -> Part:
    """This process's part in the daemon that it has joined."""
    with _lock:
        known = _parts.get(path)
        # Another thread may have come first.
        if known and known.use(launched):
            _leave(connection)
            return known
        _parts[path] = Part(path, key, connection, launched, is_job)
        return _parts[path]


def check_path(path: Path) -> Path:
    """Refuses a path that no socket can have."""
    length = len(os.fsencode(path))
    if length > _PATH_MAX:
        raise NoDaemonError(
            f"the socket's path has {length} bytes, and the system takes {_PATH_MAX}: {path} (name a shorter socket=, or set XDG_RUNTIME_DIR "
            "to a shorter folder)"
        )
    return path


def folder() -> Path:
    """Returns the folder of sockets, in which other users cannot write. Raises `NoDaemonError` where it is not this user's own."""
    folder = Path(default_socket()).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, target = folder.lstat(), folder.stat()
    except OSError as error:
        raise NoDaemonError(
            f"cannot make the folder of sockets: {error} (set XDG_RUNTIME_DIR to a folder that can be written to)"
        ) from None
    if {link.st_uid, target.st_uid} != {os.geteuid()} or target.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoDaemonError(
            f"the folder of sockets, {folder}, belongs to user {target.st_uid} and has mode {stat.S_IMODE(target.st_mode):04o}: others could put "
            f"their daemon there (remove it, or make it user {os.geteuid()}'s with mode 0700, or set XDG_RUNTIME_DIR to a folder of your own)"
        )
    return folder


def _resolved(name: str, value: object) -> object:
    """An option's value, a path made absolute: the same option in another folder, and of a process that has changed its own, names that file.

    Splits may be a mapping, such as {"val": "test"}.
    """
    if name == "splits" and isinstance(value, Mapping):
        return ",".join(f"{split}={os.fspath(place)}" for split, place in sorted(value.items()))
    if name not in _FILE_OPTIONS or not isinstance(value, str | os.PathLike):
        return value
    path = Path(value)
    return value if name == "recipe" and path.suffix != ".toml" else path.absolute()


def _alone(pid: int) -> str:
    """Returns the part of the key that is unique to the daemon of one process: the process and its visible CUDA devices."""
    return f"{identity(pid)} {os.environ.get('CUDA_VISIBLE_DEVICES')}"


def _key(data: Path | str, options: Mapping[str, object], whose: str) -> str:
    """Hashes what a daemon must have in common with the processes that join it. Paths alone mean different things in different containers."""
    # An address is no path.
    place = data.resolve() if isinstance(data, Path) else data
    # MIXD_RANK is of feeds, and may be another in each rank.
    variables = {name: value for name, value in os.environ.items() if name.startswith("MIXD_") and name not in ("MIXD_SOCKET", "MIXD_RANK")}
    parts: list[object] = [
        whose,
        os.getuid(),
        os.fspath(place),
        sorted(options.items()),
        sorted(variables.items()),
    ]
    read = [value for name, value in [("data", place), *options.items()] if name not in _WRITTEN and isinstance(value, Path)]
    files = ("MIXD_CONFIG", "MIXD_LABELS", "MIXD_RECIPE", "MIXD_SAMPLES")
    for path in (*read, *(Path(variables[name]) for name in files if name in variables)):
        with contextlib.suppress(OSError):
            status = path.stat()
            parts += [status.st_dev, status.st_ino]
            if stat.S_ISREG(status.st_mode):
                parts += [status.st_size, status.st_mtime_ns]
    with contextlib.suppress(metadata.PackageNotFoundError):
        parts.append(metadata.version("mixd"))
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=8).hexdigest()


def _meet(path: Path, launch: Launch, job: Job | None, key: str, is_cut_off: bool) -> tuple[socket.socket, Launched | None]:
    """Joins the daemon, or starts it where no process does; returns the connection that keeps it.

    `is_cut_off`: whether a daemon of this process runs there whose socket was removed.
    """
    start, deadline = path.with_name(path.name + ".start"), time.monotonic() + _START_MAX_S
    with contextlib.ExitStack() as files:
        file: int | None = None
        while time.monotonic() < deadline:
            connection = _join(path, job, key)
            if connection is None:
                if file is None:
                    file = _open(start)
                    files.callback(os.close, file)
                if _lock_file(file):
                    if _is_at(file, start):
                        # A starter that was killed may have left its reason.
                        os.ftruncate(file, 0)
                        if is_cut_off and not path.exists():
                            # Its lock, which it keeps until it ends, must not bar the next daemon.
                            _lock_of(path).unlink(missing_ok=True)
                        try:
                            former = _await_former(path, job, key)
                            return (former, None) if former else _start(path, start, file, launch, job, key)
                        finally:
                            # While still locked: a process that opened it earlier checks that it is still at its path.
                            start.unlink(missing_ok=True)
                    if reason := os.read(file, 1 << 16):
                        raise NoDaemonError(reason.decode(errors="replace"))
                    # Its daemon served, or a starter was interrupted: the next file decides.
                    files.pop_all().close()
                    file = None
            else:
                return connection, None
            time.sleep(_RETRY_S)
    raise NoDaemonError(
        f"another process of this job is starting the daemon on {path}, and has not come to an end within {_START_MAX_S:.0f} s (see its own "
        "message; end it, or name another socket=)"
    )


def _start(path: Path, start: Path, file: int, launch: Launch, job: Job | None, key: str) -> tuple[socket.socket, Launched]:
    """Starts the daemon, and joins it. The lock on the start file is this process's."""
    try:
        with descriptors_checked():
            _sweep(start)
            launched = Launched(launch, hides_devices=job is None)
        try:
            connection = _await(lambda: _join(path, job, key), lambda: True)
            if connection is None:
                raise NoDaemonError(
                    f"the daemon of {launch.command[0]} serves, but does not answer as one of this version does (install the package anew)"
                )
        except BaseException:
            launched.end()
            raise
    except Exception as error:
        os.write(file, (str(error) or repr(error)).encode())
        raise
    launched.let_go()
    return connection, launched


def _join(path: Path, job: Job | None, key: str) -> socket.socket | None:
    """Becomes an owner of the daemon with this key that serves there; None where none serves, or it ends already.

    Raises `NoDaemonError` where another daemon serves there, or another user's.
    """
    expected = b"+" + key.encode()
    with contextlib.ExitStack() as unless_joined:
        with fork_lock:
            connection = unless_joined.enter_context(keep(socket.socket(socket.AF_UNIX)))
        try:
            connection.settimeout(_ANSWER_MAX_S)
            connection.connect(os.fspath(path))
            _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if user != os.geteuid():
                raise NoDaemonError(f"the daemon on {path} is that of user {user}, not of user {os.geteuid()} (name another socket=)")
            with _launcher(job) as launcher:
                socket.send_fds(connection, [b"mixd-own"], launcher)
            answer = connection.recv(_ANSWER_BYTES)
            # A daemon without a key sends the first byte alone.
            while b"+" != answer != expected and expected.startswith(answer) and (more := connection.recv(_ANSWER_BYTES)):
                answer += more
        except OSError as error:
            check_descriptors(error)
            return None
        if not answer:
            return None
        if answer != expected:
            # Without `q`, which would end the daemon of another job whose ranks are being restarted.
            raise NoDaemonError(
                f"the daemon on {path} is that of another process or job, serves other data or was started with other options (close its servers, "
                "or name another socket=)"
            )
        connection.setblocking(True)
        unless_joined.pop_all()
    return connection


@contextlib.contextmanager
def _launcher(job: Job | None) -> Iterator[list[int]]:
    """Opens a descriptor of the job's launcher; yields none where there is no launcher, or it has ended."""
    descriptors: list[int] = []
    if job and job.launcher:
        try:
            descriptors.append(os.pidfd_open(job.launcher))
        except OSError as error:
            check_descriptors(error)
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _leave(connection: socket.socket, *, in_order: bool = True) -> None:
    """Leaves a daemon: in order, or as a process does that has died."""
    with connection, contextlib.suppress(OSError):
        if in_order:
            connection.send(b"q", socket.MSG_NOSIGNAL)


def _open(start: Path) -> int:
    try:
        start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(start, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        check_descriptors(error)
        raise NoDaemonError(f"cannot make {start}: {error} (name a socket= in a folder that can be written to)") from None


def _lock_file(file: int) -> bool:
    """Locks a file where no other process has, and no other thread; whether it has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Whether another process has locked a file."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return not _lock_file(file)
        finally:
            os.close(file)
    return False


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    opened = os.fstat(file)
    return (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino)


def _file_at(path: Path) -> tuple[int, int] | None:
    """Returns the device and inode of the file at a path; None if there is none."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        return found.st_dev, found.st_ino
    return None


def _sweep(own: Path) -> None:
    """Removes the start files of killed starters."""
    for path in folder().glob("*-*.sock.start"):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # While locked: a process that opened it earlier checks that it is still at its path.
                if path != own and _lock_file(file) and _is_at(file, path):
                    os.ftruncate(file, 0)
                    path.unlink()
            finally:
                os.close(file)


def _lock_of(path: Path) -> Path:
    """The file that the daemon on a socket keeps locked."""
    return path.with_name(path.name + ".lock")


def _await_former(path: Path, job: Job | None, key: str) -> socket.socket | None:
    """Joins a daemon that has come up since this process tried, or waits for the end of one that is on its way out."""
    return _await(lambda: _join(path, job, key), lambda: _is_locked(_lock_of(path)))


def _await(attempt: Callable[[], T | None], may_come: Callable[[], bool]) -> T | None:
    """Retries until an attempt succeeds or none can any more, for as long as a daemon may take to end."""
    end = time.monotonic() + END_MAX_S
    while (found := attempt()) is None and may_come() and time.monotonic() < end:
        time.sleep(_RETRY_S)
    return found

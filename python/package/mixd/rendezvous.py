"""One daemon for all who want the same: the ranks of a job on this machine, or the parts of one process. The first starts it, the others join.

An owner is a connection to the daemon's socket, on which it has said so; the daemon ends when it has none. Nothing here looks whether a process id
lives, which says nothing in another container: locks and connections end with their processes.

1. *Join*: connect, send `mixd-own` and a descriptor of the launcher's process; the daemon answers `+`. Who leaves sends `q`, who dies does not: the
   daemon of a job that lost an owner so outlives a restart of its ranks, by `_LINGER_S` without any or until the launchers are gone.
2. *Start*: where nobody answers, who locks `<socket>.start` starts the daemon. It writes why not into the file where that fails, and removes
   the file. Who then gets the lock reads that; where a starter was killed the file says nothing, and the next one starts.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from ._native import default_socket
from .errors import MixdError, NoDaemonError
from .job import Job, current_job, this_process
from .launch import END_MAX, Launched, held, program

# Seconds for which those who join wait for a daemon that another starts: it may unpack an archive.
_START_MAX = 1800.0
# Seconds between two looks whether it is there.
_LOOK_S = 0.03
# Seconds that a daemon takes to answer who joins.
_ANSWER_MAX = 5.0
# Seconds for which a job's daemon waits without an owner for the job's next ranks.
_LINGER_S = 120
# Bytes of a path that a socket may have (sockaddr_un).
_PATH_MAX = 107


class Part:
    """This process's part in a daemon, for all who use it here: the daemon ends with the last part, or with the job."""

    def __init__(self, path: Path, connection: int, launched: Launched | None, is_job: bool) -> None:
        self.path, self._connection, self._launched, self._is_job = path, connection, launched, is_job
        self._users = 1

    def is_there(self) -> bool:
        """Whether the daemon is: a broken connection can be read."""
        if self._connection not in held:
            return False
        broken = select.poll()
        broken.register(self._connection, select.POLLIN)
        return not broken.poll(0)

    def use(self) -> bool:
        """Adds a user, unless the daemon is gone."""
        # First, since a server that is collected meanwhile ends the last use.
        self._users += 1
        if self.is_there():
            return True
        self._users -= 1
        return False

    def explain(self, error: MixdError) -> None:
        """Adds to an error how the daemon ended, where this process started it."""
        if self._launched and (how := self._launched.how_it_ended()):
            error.args = (f"{error}: {how}",)

    def release(self, *, wait: bool = False) -> None:
        """Ends one user's use of it, and with the last one's this part. With `wait` the daemon of a process by itself has then ended."""
        with _lock:
            self._users -= 1
            if self._users or self._connection not in held:
                return
            if _parts.get(self.path) is self:
                del _parts[self.path]
            held.remove(self._connection)
        _leave(self._connection)
        if wait and self._launched and not self._is_job:
            self._launched.wait()


_parts: dict[Path, Part] = {}
_lock = threading.RLock()


def _forget() -> None:
    """Takes the parent's parts from a child that was forked; the lock may have been held by a thread that is not here."""
    global _lock
    _lock = threading.RLock()
    _parts.clear()


os.register_at_fork(after_in_child=_forget)


def part(data: Path, options: Mapping[str, object], given: Path | None) -> Part:
    """Takes part in the daemon that serves these data with these options to this process or its job, on the socket `given` or one of its own.

    Raises `NoDaemonError`, with the daemon's own message, where it does not come up, in all who wait for it.
    """
    job = current_job()
    options = {name: value for name, value in options.items() if value is not None and value is not False}
    key = _key(data, options, job)
    path = check_path(given or folder() / f"{'job' if job else 'own'}-{key}.sock")
    with _lock:
        known = _parts.get(path)
        if known and _is_for(path, key, given) and known.use():
            return known
    command = [program(), "serve", "--data", os.fspath(data), "--socket", os.fspath(path), "--until-eof"]
    command += ["--linger", str(_LINGER_S)] if job else []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [f"{flag}={value}"]
    connection, launched = _meet(path, command, job, key, given)
    with _lock:
        known = _parts.get(path)
        # Another thread may have come first.
        if known and known.use():
            known._launched = known._launched or launched
            _leave(connection)
            return known
        held.add(connection)
        _parts[path] = Part(path, connection, launched, job is not None)
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
    """Where sockets lie, which nobody else may enter."""
    folder = Path(default_socket()).parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoDaemonError(
            f"cannot make the folder of sockets: {error} (set XDG_RUNTIME_DIR to a folder that can be written to)"
        ) from None
    return folder


def _key(data: Path, options: Mapping[str, object], job: Job | None) -> str:
    """What a daemon must have in common with who joins it. Paths alone mean different things in different containers."""
    place = data.resolve()
    things: list[object] = [job.id if job else this_process(), os.getuid(), os.fspath(place), sorted(options.items())]
    with contextlib.suppress(OSError):
        there = place.stat()
        things += [there.st_dev, there.st_ino]
    with contextlib.suppress(metadata.PackageNotFoundError):
        things.append(metadata.version("mixd"))
    return hashlib.blake2b(json.dumps(things, default=str).encode(), digest_size=8).hexdigest()


def _meet(path: Path, command: list[str], job: Job | None, key: str, given: Path | None) -> tuple[int, Launched | None]:
    """Joins the daemon, or starts it where nobody does; returns the connection that keeps it."""
    start, deadline = path.with_name(path.name + ".start"), time.monotonic() + _START_MAX
    with contextlib.ExitStack() as files:
        mine: int | None = None
        while time.monotonic() < deadline:
            connection = _join(path, job)
            if connection is None:
                if mine is None:
                    mine = _open(start)
                    files.callback(os.close, mine)
                if _lock_file(mine):
                    if why := os.read(mine, 1 << 16):
                        raise NoDaemonError(why.decode(errors="replace"))
                    if _is_at(mine, start):
                        connection = _await_former(path, job)
                        if connection is None:
                            return _start(path, start, mine, command, job, key if given else None)
                        start.unlink(missing_ok=True)
                    else:
                        # Its daemon served, or a starter was interrupted: the next file decides.
                        files.pop_all().close()
                        mine = None
            if connection is not None:
                if _is_for(path, key, given):
                    return connection, None
                _leave(connection)
                raise NoDaemonError(f"the daemon on {path} serves other data or was started with other options (name another socket=)")
            time.sleep(_LOOK_S)
    raise NoDaemonError(
        f"another process of this job is starting the daemon on {path}, and has not come to an end within {_START_MAX:.0f} s (see its own "
        "message; end it, or name another socket=)"
    )


def _start(path: Path, start: Path, mine: int, command: list[str], job: Job | None, key: str | None) -> tuple[int, Launched]:
    """Starts the daemon, and joins it. The lock on the start file is this process's."""
    with contextlib.ExitStack() as ends:
        # While still locked: who has opened it before looks whether it is still there.
        ends.callback(start.unlink, missing_ok=True)
        try:
            _sweep(start)
            if key:
                path.with_name(path.name + ".key").write_text(key)
            launched = Launched(command, hides_devices=job is None)
            try:
                connection = _await(lambda: _join(path, job), lambda: True)
                if connection is None:
                    raise NoDaemonError(
                        f"the daemon of {command[0]} serves, but does not answer as one of this version does (install the package anew)"
                    )
            except BaseException:
                launched.end()
                raise
        except Exception as error:
            os.write(mine, (str(error) or repr(error)).encode())
            raise
    launched.let_go()
    return connection, launched


def _join(path: Path, job: Job | None) -> int | None:
    """Becomes an owner of the daemon that serves there; None where none does, or it ends already."""
    with contextlib.ExitStack() as descriptors, socket.socket(socket.AF_UNIX) as connection:
        launcher: list[int] = []
        if job and job.launcher:
            with contextlib.suppress(OSError):
                launcher.append(os.pidfd_open(job.launcher))
                descriptors.callback(os.close, launcher[0])
        try:
            connection.settimeout(_ANSWER_MAX)
            connection.connect(os.fspath(path))
            socket.send_fds(connection, [b"mixd-own"], launcher)
            if connection.recv(1) != b"+":
                return None
        except OSError:
            return None
        connection.setblocking(True)
        return connection.detach()


def _leave(connection: int) -> None:
    """Leaves a daemon in order."""
    with socket.socket(fileno=connection) as leaving, contextlib.suppress(OSError):
        leaving.send(b"q", socket.MSG_NOSIGNAL)


def _is_for(path: Path, key: str, given: Path | None) -> bool:
    """Whether the daemon on a socket that was given serves what this process wants; sockets of other names are named after it."""
    if given is None:
        return True
    with contextlib.suppress(OSError):
        return path.with_name(path.name + ".key").read_text() == key
    return False


def _open(start: Path) -> int:
    try:
        start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(start, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
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
        there = path.lstat()
    except FileNotFoundError:
        return False
    mine = os.fstat(file)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _sweep(own: Path) -> None:
    """Removes the start files of killed starters."""
    for path in folder().glob("*-*.sock.start"):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # While locked: who has opened it before looks whether it is still there.
                if path != own and _lock_file(file) and _is_at(file, path):
                    path.unlink()
            finally:
                os.close(file)


def _await_former(path: Path, job: Job | None) -> int | None:
    """Joins a daemon that has come up since this process looked, or waits for the end of one that is on its way out."""
    return _await(lambda: _join(path, job), lambda: _is_locked(path.with_name(path.name + ".lock")))


def _await(look: Callable[[], int | None], goes_on: Callable[[], bool]) -> int | None:
    """Looks until there is something or nothing goes on, for as long as a daemon may take to end."""
    end = time.monotonic() + END_MAX
    while (found := look()) is None and goes_on() and time.monotonic() < end:
        time.sleep(_LOOK_S)
    return found

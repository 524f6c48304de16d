"""Starts a daemon as a process of its own: its program, its environment, its log, and how it ended."""

import collections
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import weakref
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

from .errors import NoDaemonError
from .limits import check_descriptors

T = TypeVar("T", socket.socket, io.FileIO)

# Lines of a daemon's log that an error may show.
_LINES_KEPT = 20
# Seconds in which a daemon that is to end has ended.
END_MAX_S = 10.0
# Seconds in which a daemon whose connection broke has become a process that has ended.
_REAP_MAX_S = 1.0

# The daemon's parent is a shell that ends as it does: Ray kills the children of a worker that it ends, and the daemon is to outlive the worker.
# (A shell's background process has no standard input of its own accord.)
_SHELL = ["sh", "-c", 'exec 3<&0; "$@" <&3 3<&- & wait "$!"', "mixd"]
# What a shell adds to the number of the signal that ended a process.
_SIGNALLED = 128

# What keeps daemons going. A child that is forked closes its copies: it must not outlive its parent's part, nor end it. Objects and not numbers:
# the child's own connections get the same numbers again.
_kept: "weakref.WeakSet[socket.socket | io.FileIO]" = weakref.WeakSet()
# Held by each fork, and while something that keeps a daemon is made: no child has a copy that is not in the set.
fork_lock = threading.RLock()


def keep(made: T) -> T:
    """Has children that are forked close a socket or a file; made with `fork_lock` held."""
    _kept.add(made)
    return made


def _close_copies() -> None:
    for copy in list(_kept):
        copy.close()
    fork_lock.release()


os.register_at_fork(before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=_close_copies)


class Launch(NamedTuple):
    """How a daemon is started."""

    command: list[str]
    # What goes into its environment and not into its arguments, which every user of the machine sees.
    variables: dict[str, str]


class Launched:
    """A daemon that this process started."""

    def __init__(self, launch: Launch, *, hides_devices: bool) -> None:
        """Starts the daemon and waits until it serves. `hides_devices`: whether it may use those devices only that this process sees.

        Raises `NoDaemonError`, with the daemon's last lines, where it does not come up.
        """
        environment = {"RUST_LOG": "mixd=warn", **os.environ, **launch.variables, "LD_LIBRARY_PATH": library_path()}
        if not hides_devices:
            environment.pop("CUDA_VISIBLE_DEVICES", None)
        self._oom_kills = _oom_kills()
        self._starter = os.getpid()
        with fork_lock:
            reading, writing = os.pipe()
            self._stdin = keep(io.FileIO(writing, "w"))
        try:
            log_reading, log_writing = os.pipe()
        except OSError:
            os.close(reading)
            self.let_go()
            raise
        log = open(log_reading, errors="replace")  # noqa: SIM115 (the thread closes it)
        # Only this process reads the log. While it is stopped the daemon drops lines rather than wait.
        os.set_blocking(log_writing, False)
        pipes: dict[str, Any] = {"stdin": reading, "stdout": subprocess.PIPE, "stderr": log_writing}
        try:
            # In a group of its own, so that a terminal's Ctrl-C does not reach it: it ends when its owners do.
            self.process = subprocess.Popen(_SHELL + launch.command, **pipes, text=True, errors="replace", env=environment, process_group=0)
        except OSError as error:
            self.let_go()
            log.close()
            check_descriptors(error)
            raise NoDaemonError(f"cannot start a shell for {launch.command[0]}: {error} (have sh on the PATH)") from None
        finally:
            os.close(reading)
            os.close(log_writing)
        assert self.process.stdout
        last_lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        relay = threading.Thread(target=_relay, args=(self.process, log, last_lines), name="mixd-log", daemon=True)
        relay.start()
        try:
            with self.process.stdout as out:
                if not out.readline():
                    code = self.process.wait()
                    relay.join(END_MAX_S)
                    raise NoDaemonError(f"the daemon did not come up (exit code {code}): {''.join(last_lines).strip()}")
        except BaseException:
            self.end()
            raise

    def let_go(self) -> None:
        """Closes the daemon's standard input: from here on connections alone keep it."""
        if not self._stdin.closed:
            with self._stdin, contextlib.suppress(OSError):
                self._stdin.write(b"q")

    def end(self) -> None:
        """Has it end, and waits for that."""
        self.let_go()
        self.wait()

    def wait(self) -> None:
        """Waits for its end, and kills it where it takes too long."""
        try:
            self.process.wait(END_MAX_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def how_it_ended(self) -> str:
        """Says how it ended, as far as the system knows; empty while it runs, and in processes that did not start it."""
        if self._starter != os.getpid():
            return ""
        try:
            code = self.process.wait(_REAP_MAX_S)
        except subprocess.TimeoutExpired:
            return ""
        ended_by = abs(code) if code < 0 else code - _SIGNALLED
        if ended_by <= 0:
            return f"it ended with exit code {code}"
        name = signal.Signals(ended_by).name if ended_by in set(signal.Signals) else f"signal {ended_by}"
        text = f"it was killed by {name}"
        kills = _oom_kills() - self._oom_kills
        if ended_by == signal.SIGKILL and kills > 0:
            text += (
                f"; the kernel's out-of-memory killer has killed {kills} processes of this cgroup since it started (give it less: cache=)"
            )
        return text


def _relay(process: "subprocess.Popen[str]", log: TextIO, last_lines: "collections.deque[str]") -> None:
    """Passes a daemon's log on to standard error, keeps its last lines, and reaps the daemon when it has ended."""
    with log:
        for line in log:
            last_lines.append(line)
            # Past Python's own buffer, whose lock a thread must not hold when the interpreter ends.
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
    process.wait()


def _oom_kills() -> int:
    """How many processes of this process's cgroup, its descendants included, the kernel has killed for lack of memory; 0 where that is not known."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory") and "memory" not in controllers.split(","):
                continue
            root, name = ("", "memory.events") if not controllers else ("memory", "memory.oom_control")
            # In a container the path may be one outside it.
            for folder in (Path("/sys/fs/cgroup", root, path.lstrip("/")), Path("/sys/fs/cgroup", root)):
                if (folder / name).exists():
                    counters = dict(entry.split() for entry in (folder / name).read_text().splitlines())
                    return int(counters.get("oom_kill", 0))
    return 0


def program() -> str:
    """Finds the daemon's program, which this package brings: where its installer says, or beside the interpreter or the package."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution("mixd").files or ():
            if file.parts[-2:] == ("bin", "mixd"):
                found = Path(os.fspath(file.locate())).resolve()
                if os.access(found, os.X_OK):
                    return str(found)
    places = [sysconfig.get_path("scripts"), Path(__file__).parent.parent / "bin"]
    found_else = shutil.which("mixd", path=os.pathsep.join(map(str, places))) or shutil.which("mixd")
    if not found_else:
        raise NoDaemonError(
            f"the program mixd, which comes with this package, is neither in {places[0]} nor on PATH (install the package anew)"
        )
    return found_else


def library_path() -> str:
    """LD_LIBRARY_PATH for a daemon: with NVRTC, which it compiles its kernels with, where an installed package brings it, as PyTorch's do."""
    own = os.environ.get("LD_LIBRARY_PATH", "")
    found = (str(path.parent) for folder in sys.path for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so.*"))
    return os.pathsep.join(filter(None, [own, next(found, "")]))

"""What all tests use: daemons of their own, in processes and folders of their own."""

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import mixd
import pytest
from mixd.launch import program

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_DATA = ROOT / "sample-data"
EXAMPLES = ROOT / "python" / "examples"
REFERENCE = ROOT / "tests" / "golden"

# Seconds in which what should happen at once has happened.
DEADLINE = 20.0
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], seconds: float = DEADLINE) -> T:
    """Looks again and again until there is something to see."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


# Beginnings of the names of variables that launchers set, and of mixd's own.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "SLURM_", "OMPI_", "PMI", "RAY_", "MIXD_")

_jobs = itertools.count()


def job_name() -> str:
    """Names a job as no other test does, nor an earlier run: what a failed test has left must not be joined."""
    return f"{os.getpid()}{next(_jobs)}"


@pytest.fixture(autouse=True, scope="session")
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the variables of a job that runs the tests, and its sockets, from them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(VARIABLES) and name != "MIXD_IMAGENETTE"]:
            patch.delenv(name)
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that a test starts."""
    return os.environ | {"RUST_LOG": "mixd=error"} | more


def mixd_output(*arguments: object) -> str:
    """What the command `mixd` prints."""
    return subprocess.run([program(), *map(str, arguments)], env=environment(), check=True, capture_output=True, text=True).stdout


class Daemon:
    """A daemon that is nobody's own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.socket, self.options = folder, folder / "mixd.sock", options
        self.start()

    def start(self, *options: str) -> None:
        """Starts it, or the next one in its place."""
        command = [program(), "serve", f"--data={SAMPLE_DATA}", f"--socket={self.socket}", *(options or self.options)]
        self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline().startswith("mixd: serving")
        self.process.stdout.close()

    def connect(self, reconnect: float = 0.0) -> mixd.Server:
        """As its trainers do."""
        return mixd.connect(self.socket, reconnect=reconnect)

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()

    def feeds(self) -> str:
        """What it says of its feeds."""
        return mixd_output("status", "--socket", self.socket)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the sample data."""
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.kill()


class Script:
    """A trainer in a process of its own: Python, in which `server` is connected to the daemon and `say` tells this test something."""

    PRELUDE = """
import json, os, signal, sys, time
import mixd
# Whoever runs the tests in the background may have had it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
server = mixd.connect(os.environ["SOCKET"], reconnect=float(os.environ["RECONNECT"])) if "SOCKET" in os.environ else None
# In one piece: others may say something on the same pipe.
def say(*things): os.write(1, (json.dumps(things) + "\\n").encode())
"""

    def __init__(self, code: str, daemon: Daemon | None = None, reconnect: float = 0.0, **variables: str) -> None:
        if daemon:
            variables |= {"SOCKET": str(daemon.socket), "RECONNECT": str(reconnect)}
        command = [sys.executable, "-c", self.PRELUDE + code]
        self.process = subprocess.Popen(
            command,
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Of its own, so that its children can be killed with it.
            process_group=0,
        )

        # Read as it comes, so that a wait for it has a deadline.
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def heard(self) -> Any:
        """The next thing that it says."""
        line = self.lines.get(timeout=DEADLINE)
        assert line, f"it says nothing more: {self.finish()}"
        return json.loads(line)

    def tell(self, what: object = "") -> None:
        """Has it go on, with this line."""
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str]:
        """Its end: exit code, and standard error."""
        assert self.process.stderr
        code = self.process.wait(timeout=DEADLINE)
        return code, self.process.stderr.read()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts trainers in processes of their own, and ends those that are left."""
    started: list[Script] = []

    def start(*arguments: Any, **keywords: Any) -> Script:
        started.append(Script(*arguments, **keywords))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        for stream in (one.process.stdin, one.process.stderr):
            assert stream
            stream.close()


def is_alive(process: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    # The second where it goes while it is looked at.
    except (FileNotFoundError, ProcessLookupError):
        return False


def mapping_of(address: int) -> str:
    """The line of this process's memory map that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line
    return ""

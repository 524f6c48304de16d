"""Child processes of storm.py and soak.py: a daemon and its trainers, whose output is read without blocking, and which are ended by id."""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).resolve().parent
TRAINER = HERE / "storm_trainer.py"


class Child:
    """A process whose standard output is read line by line; standard error goes to `log`, which it overwrites."""

    _alive: ClassVar[set["Child"]] = set()

    def __init__(self, command: list[object], log: Path, env: dict[str, str]) -> None:
        self.command, self.log = [str(word) for word in command], log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env)
        os.set_blocking(self.process.stdout.fileno(), False)
        self._part, self.stopped = b"", False
        self._alive.add(self)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def fileno(self) -> int:
        """Its output, for a selector."""
        return self.process.stdout.fileno()

    def lines(self) -> list[bytes] | None:
        """The complete lines that have come since the last call; None once the output has ended. What a killed process left of a line is dropped."""
        try:
            read = os.read(self.fileno(), 1 << 18)
        except BlockingIOError:
            return []
        if not read:
            return None
        *lines, self._part = (self._part + read).split(b"\n")
        return lines

    def write(self, text: str) -> None:
        """Writes to its standard input; a process that has ended reads nothing."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()

    def signal(self, number: int) -> None:
        """Sends a signal; nothing where the process was reaped."""
        self.process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.stopped = number == signal.SIGSTOP

    def close_input(self) -> None:
        """Ends its standard input."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def exit_code(self) -> int | None:
        """Its exit status once it has ended, negative for a signal; then its pipes are closed."""
        code = self.process.poll()
        if code is not None and self in self._alive:
            self._alive.discard(self)
            self.close_input()
            self.process.stdout.close()
        return code

    def reap(self) -> int:
        """Kills it, unless it has ended, and returns its exit status."""
        self.process.kill()
        self.process.wait()
        return self.exit_code()

    def last_words(self) -> str:
        """The last lines of its standard error."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])[-600:]

    @classmethod
    def reap_all(cls) -> None:
        """Kills every process that was started here and has not ended."""
        for child in list(cls._alive):
            child.reap()


def parser(description: str, seconds: float) -> argparse.ArgumentParser:
    """The options of both scripts."""
    own = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    mixd = Path(sys.executable).with_name("mixd")
    own.add_argument("--mixd", default=str(mixd), help="the program under test; by default the package's, beside this interpreter")
    own.add_argument("--data", required=True, type=Path, help="an image folder; it is not changed")
    own.add_argument("--seconds", type=float, default=seconds, help="how long to run; %(default)g by default")
    own.add_argument("--seed", type=int, help="of all that is drawn; by default a new one, which is printed")
    return own


def drawn_seed(script: str, options: argparse.Namespace) -> int:
    """The seed that was given, or a new one; prints what runs the script so again."""
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"{script}: --seed {seed} --seconds {options.seconds:g}", flush=True)
    return seed


def watchdog(seconds: float) -> None:
    """Ends this process and its children, with exit status 1, after so many seconds, whatever it is doing."""

    def end() -> None:
        os.write(2, f"not done within {seconds:.0f} s: ended by the watchdog\n".encode())
        Child.reap_all()
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    # Ctrl-C and SIGTERM unwind, so that the children are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


class Place:
    """The folders of a run: its data set, socket, logs and caches; and the program under test."""

    def __init__(self, folder: Path, mixd: str, data: Path) -> None:
        self.folder, self.mixd, self.data, self.socket = folder, mixd, data, folder / "mixd.sock"
        own = {name: value for name, value in os.environ.items() if not name.startswith("MIXD_") and name != "RUST_LOG"}
        self.env = own | {"XDG_RUNTIME_DIR": str(folder / "run"), "XDG_CACHE_HOME": str(folder / "cache"), "RUST_LOG": "mixd=error"}
        (folder / "run").mkdir(mode=0o700)
        (folder / "cache").mkdir()

    def daemon(self, *options: str) -> Child:
        """A daemon; it serves when it prints its first line. It ends with this process."""
        command = [self.mixd, "serve", "--data", self.data, "--socket", self.socket, "--until-eof", *options]
        return Child(command, self.folder / "daemon.log", self.env)

    def trainer(self, name: str, **job: object) -> Child:
        """A trainer in Python; storm_trainer.py documents the job."""
        command = [sys.executable, TRAINER, json.dumps({"socket": str(self.socket), **job})]
        return Child(command, self.folder / f"{name}.log", self.env)

    def output(self, *arguments: object) -> str:
        """What a command of mixd prints; raises CalledProcessError."""
        command = [self.mixd, *map(str, arguments)]
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True, timeout=60).stdout

    def status(self) -> dict:
        """What the daemon is doing."""
        return json.loads(self.output("status", "--json", "--socket", self.socket))


def wait_for(what: str, look, seconds: float = 30.0):
    """Polls until there is something to see, and returns it; raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.01)
    return found


def flags(options: dict[str, object]) -> list[str]:
    """A feed's options as the command line takes them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]

"""What a lack of file descriptors is reported as."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

from .errors import NoDaemonError


def check_descriptors(error: OSError) -> None:
    """Raises `NoDaemonError` with the limit and the remedy where a system call failed for lack of file descriptors."""
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        text = f"too many files are open in process {os.getpid()}, whose limit is {limit} (raise `ulimit -n`, or close some)"
        raise NoDaemonError(text) from None
    if error.errno == errno.ENFILE:
        raise NoDaemonError("too many files are open on this machine (raise `sysctl fs.file-max`)") from None


@contextlib.contextmanager
def descriptors_checked() -> Iterator[None]:
    """Has a lack of file descriptors raise as `check_descriptors` does."""
    try:
        yield
    except OSError as error:
        check_descriptors(error)
        raise

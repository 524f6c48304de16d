"""What can go wrong between a trainer and its daemon."""

from collections.abc import Sequence

__all__ = [
    "CorruptCursorError",
    "DaemonGoneError",
    "EvictedError",
    "FeedEndedError",
    "MixdError",
    "NoDaemonError",
    "NoRoomError",
    "RefusedError",
    "SpecError",
]


class MixdError(Exception):
    """Anything that goes wrong between a trainer and its daemon."""


class NoDaemonError(MixdError):
    """No daemon answers, or none could be started."""


class SpecError(MixdError, ValueError):
    """An argument is out of range or contradicts another, the data set, or the shared feed of that name.

    keys: the spec's keys in which the shared feed differs.
    next: epoch and index of the shared feed's next batch, where it has passed the batch to start with.
    """

    keys: Sequence[str] = ()
    next: tuple[int, int] | None = None


class RefusedError(MixdError):
    """The daemon refuses the feed, whatever its arguments.

    kind: "stopping" (it opens no more feeds), "too-many-trainers", "no-room", "device", "version", "other-user", "system", or "other".
    """

    kind: str = "other"


class NoRoomError(RefusedError):
    """Shared memory, main memory or a device's memory does not suffice; bytes are None where the daemon does not know them."""

    kind = "no-room"
    need_bytes: int | None = None
    free_bytes: int | None = None


class DaemonGoneError(MixdError):
    """The daemon has died, and no other goes on: none came in time, or the one that did makes other batches or is at an earlier place."""


class EvictedError(MixdError):
    """The daemon has evicted this trainer from a shared feed, because it kept others waiting for too long."""


class CorruptCursorError(EvictedError):
    """The daemon has evicted this trainer because its cursor in shared memory held impossible values: something wrote into it."""


class FeedEndedError(MixdError):
    """The daemon has ended the feed.

    failed: whether it could not go on, because of an image or for lack of memory, rather than being stopped in order.
    """

    failed: bool = False

"""What can go wrong between a trainer and its daemon."""

__all__ = ["DaemonGoneError", "EvictedError", "FeedEndedError", "MixdError", "NoDaemonError", "SpecError"]


class MixdError(Exception):
    """Anything that goes wrong between a trainer and its daemon."""


class NoDaemonError(MixdError):
    """No daemon answers, or none could be started."""


class SpecError(MixdError, ValueError):
    """A feed that cannot be served: an argument is out of range or contradicts another, or the daemon lacks what it takes."""


class DaemonGoneError(MixdError):
    """The daemon has died, and none has taken its place in time."""


class EvictedError(MixdError):
    """The daemon has put this trainer out of a shared feed."""


class FeedEndedError(MixdError):
    """The daemon has ended the feed, in order or because it could not go on."""

"""Feeds that go on with another world size: what is left of an epoch is dealt to the new ranks."""

import json
from typing import Any

import mixd
import pytest

from ..conftest import Daemon

OPTIONS: dict[str, Any] = {"batch_size": 8, "size": 16, "seed": 5}


def ranks(server: mixd.Server, world_size: int, state: Any = None, **options: Any) -> list[mixd.Feed]:
    """The feeds of all ranks, resumed where a state is given."""
    feeds = [server.feed("train", rank=rank, world_size=world_size, **OPTIONS | options) for rank in range(world_size)]
    for feed in feeds if state else []:
        feed.load_state_dict(json.loads(json.dumps(state)))
    return feeds


def shown(batches: Any) -> list[int]:
    """The samples of batches, without padding."""
    return [sample for batch in batches for sample in batch.sample_id.tolist()[: len(batch) - batch.pad]]


def test_the_rest_of_an_epoch_is_dealt_to_fewer_and_to_more_ranks(daemon: Daemon) -> None:
    server = daemon.connect()
    stopped = ranks(server, 4)
    whole = shown(feed.next_batch() for feed in stopped for _ in range(len(feed)))
    taken = shown(feed.next_batch() for feed in stopped for _ in range(2))
    state = stopped[2].state_dict()
    assert state["epoch"] == 1 and (len(whole), len(taken)) == (200, 64)
    for world_size, batches, left in ((3, 9, 6), (8, 4, 3)):
        feeds = ranks(server, world_size, state)
        places = [[(batch.epoch, batch.index) for batch in feed] for feed in feeds]
        assert places == [[(1, index) for index in range(batches - left, batches)]] * world_size
        feeds = ranks(server, world_size, state)
        assert [len(feed.epoch()) for feed in feeds] == [left] * world_size
        rest = [sample for feed in feeds for sample in shown(feed)]
        assert sorted(taken + rest) == list(range(200)), world_size
        # The next epoch is the one of ranks that were never anything else.
        after, plain = ([shown(feed.epoch(2)) for feed in of] for of in (feeds, ranks(server, world_size)))
        assert after == plain and feeds[0].place == (3, 0)


def test_a_feed_that_went_on_goes_on_once_more(daemon: Daemon) -> None:
    server = daemon.connect()
    feeds = ranks(server, 4)
    taken = shown(feed.next_batch() for feed in feeds for _ in range(3))
    for world_size, count in ((3, 2), (3, 1), (2, 1), (5, 0)):
        feeds = ranks(server, world_size, feeds[0].state_dict())
        taken += shown(feed.next_batch() for feed in feeds for _ in range(count or len(feed.epoch())))
    assert sorted(taken) == list(range(200)) and feeds[0].place == (1, 0)
    # A whole epoch has no rest.
    (feed,) = ranks(server, 1, feeds[0].state_dict())
    assert feed.place == (1, 0) and "consumed" not in feed.spec
    # A state of its own world size brings back its own epochs.
    (plain,) = ranks(server, 1)
    feed.load_state_dict(ranks(server, 2, {**feed.state_dict(), "index": 4})[0].state_dict())
    assert feed.spec["consumed"] == {"epoch": 1, "samples": 32}
    feed.load_state_dict(plain.state_dict())
    assert (feed.place, feed.spec) == ((0, 0), plain.spec) and shown(feed) == shown(plain)


def test_a_rest_that_fills_no_batch_leads_to_the_next_epoch(daemon: Daemon) -> None:
    server = daemon.connect()
    # Six batches of eight at each of four ranks, of which five leave 40 samples: no batch for eight ranks, one for five.
    state = {**ranks(server, 4, last="drop")[0].state_dict(), "epoch": 2, "index": 5}
    assert [feed.place for feed in ranks(server, 8, state, last="drop")] == [(3, 0)] * 8
    feeds = ranks(server, 5, state, last="drop")
    assert [feed.place for feed in feeds] == [(2, 4)] * 5
    rest = shown(feed.next_batch() for feed in feeds)
    assert len(set(rest)) == 40 and feeds[0].place == (3, 0)


def test_what_cannot_go_on_is_refused_and_the_feed_stays(daemon: Daemon) -> None:
    server = daemon.connect()
    state = {**ranks(server, 4)[0].state_dict(), "epoch": 1, "index": 2}
    (feed,) = ranks(server, 1, state)
    place = feed.place
    # 64 samples were read, and 17 of 25 batches are left.
    refused = r"64 samples are consumed: the first batch of the rest is epoch 1, batch 8 \(start there or later"
    for before in ((1, 7), (1, 0), (0, 24)):
        with pytest.raises(mixd.SpecError, match=refused):
            feed.seek(*before)
    with pytest.raises(mixd.SpecError, match="a place that is not there: start is epoch 1, batch 7, but an epoch has 7 batches"):
        feed.load_state_dict({**state, "index": 7})
    with pytest.raises(mixd.SpecError, match=r"its batch_size \(8, not 4\)"):
        server.feed("train", rank=0, world_size=3, **OPTIONS | {"batch_size": 4}).load_state_dict(state)
    shared = server.feed("train", rank=0, world_size=3, share="all", **OPTIONS)
    with pytest.raises(mixd.SpecError, match="a shared feed cannot go on with another world size"):
        shared.load_state_dict(state)
    assert (feed.place, shared.place) == (place, (0, 0)) == ((1, 8), (0, 0))
    assert len(shown(feed)) == 136

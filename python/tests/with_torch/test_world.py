"""Loaders that go on with another world size."""

from mixd.torch import DataLoader

from ..conftest import Daemon


def test_loaders_deal_the_rest_of_an_epoch_without_padding(daemon: Daemon) -> None:
    server = daemon.connect()
    options = {"batch_size": 1, "size": 16}

    def loaders(world_size: int) -> list[DataLoader]:
        feeds = [server.feed("val", rank=rank, world_size=world_size, **options) for rank in range(world_size)]  # type: ignore[arg-type]
        return [DataLoader(feed, padded="drop") for feed in feeds]

    # Of 50 samples four ranks have read 2 each: 42 are left, 14 for each of three, and 9 or 8 for each of five.
    state = {**loaders(4)[0].state_dict(), "index": 2}
    for world_size, rows in ((3, [14, 14, 14]), (5, [9, 9, 8, 8, 8])):
        resumed = loaders(world_size)
        for loader in resumed:
            loader.load_state_dict(state)
        assert [[len(x) for x, _ in loader] for loader in resumed] == [[1] * count for count in rows]
        # The next epoch is a whole one.
        assert [sum(len(x) for x, _ in loader) for loader in resumed] == [len(loader) for loader in resumed]
        assert sum(len(loader) for loader in resumed) == 50

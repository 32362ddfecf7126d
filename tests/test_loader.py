"""The training stream is endless and resumable; evaluation shows each sample once."""

from collections import Counter
from itertools import chain, islice

import pytest

from salmonn.loader import TrainBatches, eval_loader


def stream(n_batches, **kwargs):
    settings = {"n": 10, "batch_size": 2, "rank": 0, "world_size": 1, "seed": 5, **kwargs}
    return list(islice(TrainBatches(**settings), n_batches))


def test_a_pass_shows_each_sample_once_and_the_next_is_shuffled_anew():
    batches = stream(10)
    first, second = list(chain(*batches[:5])), list(chain(*batches[5:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_ranks_share_a_global_batch_without_overlap():
    alone = stream(4, batch_size=4)
    ranks = [stream(4, rank=r, world_size=2) for r in range(2)]
    assert [ranks[0][k] + ranks[1][k] for k in range(4)] == alone


def test_a_stream_continues_where_it_stopped():
    assert stream(3, first_batch=4) == stream(7)[4:]


def test_passes_that_do_not_divide_into_batches_lose_nothing():
    seen = Counter(i for batch in stream(35, n=7) for i in batch)
    assert set(seen.values()) == {10}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shows_each_sample_exactly_once_over_all_ranks(world_size):
    class Numbers:
        def __len__(self):
            return 11

        def __getitem__(self, i):
            return i

    seen = []
    for rank in range(world_size):
        loader = eval_loader(Numbers(), 2, 0, rank, world_size)
        seen += [i for batch in loader.batch_sampler for i in batch]
    assert sorted(seen) == list(range(11))

"""The training stream is endless and resumable; evaluation shows each sample once."""

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
from omegaconf import OmegaConf

from salmonn.config.schema import RunConfig
from salmonn.data.loader import TrainBatches, eval_loader, inference_loader
from salmonn.training.progress import make_plan


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
    assert stream(3, first_sample=8) == stream(7)[4:]


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


def test_inference_keeps_the_order_that_it_is_given():
    assert list(inference_loader(range(10), [4, 2, 9], 2, 0).batch_sampler) == [[4, 2], [9]]


# ---- like lengths within a step of the optimiser

LENGTHS = np.random.default_rng(0).integers(1, 1000, 10_000)


def sorted_steps(steps, **kwargs):
    return stream(sum(steps), n=len(LENGTHS), lengths=LENGTHS, batch_size=4, **kwargs, steps=steps)


def test_a_step_sorted_by_length_holds_the_samples_that_it_holds_unsorted():
    batches, plain = sorted_steps([16, 16, 5]), stream(37, n=len(LENGTHS), batch_size=4)
    for step in (slice(0, 16), slice(16, 32), slice(32, 37)):
        assert sorted(chain(*batches[step])) == sorted(chain(*plain[step]))
        lengths = LENGTHS[list(chain(*batches[step]))]
        assert (np.diff(lengths) <= 0).all()


def test_the_ranks_of_a_sorted_step_have_like_lengths_at_the_same_time():
    alone = sorted_steps([8])
    ranks = [sorted_steps([4], rank=r, world_size=2) for r in range(2)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == alone


def test_sorted_steps_go_on_where_a_run_stopped():
    assert sorted_steps([3, 6], first_sample=4 * 10) == sorted_steps([8, 2, 3, 6])[10:]


def test_steps_are_counted_anew_in_each_epoch_whose_last_step_may_be_smaller():
    run = OmegaConf.structured(RunConfig(batch_size_train=2, accum_grad_iters=4, iters_per_epoch=10))
    plan = make_plan(run, n_train=100, world_size=1)
    assert list(islice(plan.step_sizes(0), 7)) == [4, 4, 2, 4, 4, 2, 4]
    assert list(islice(plan.step_sizes(8), 3)) == [2, 4, 4]  # inside an epoch
    assert list(islice(plan.step_sizes(10), 2)) == [4, 4]  # at its end, before it is validated

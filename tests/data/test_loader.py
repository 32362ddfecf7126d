"""The training stream is endless and resumable; evaluation shows each sample once."""

import json
import logging
import os
import threading
from collections import Counter
from functools import partial
from itertools import chain, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from salmonn.common.processes import Parcel, in_processes
from salmonn.config.schema import RunConfig
from salmonn.data import loader as loader_module
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths
from salmonn.data.dataset import SALMONNDataset, load_items
from salmonn.data.loader import LoadingError, TrainBatches, eval_loader, inference_loader, train_loader
from salmonn.training.progress import make_plan
from tests.fixtures.kill_runs import workers_of
from tests.fixtures.numbered_clips import Numbers, loaded_modules
from tests.fixtures.waiting import HANG


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
    loaders = (eval_loader(Numbers(11), 2, 0, rank, world_size) for rank in range(world_size))
    assert sorted(chain(*map(seen, loaders))) == list(range(11))


def test_inference_keeps_the_order_that_it_is_given():
    assert [batch["index"] for batch in inference_loader(Numbers(10), [4, 2, 9], 2, 0)] == [[4, 2], [9]]


# ---- processes that load


def seen(loader) -> list[int]:
    return [index for batch in loader for index in batch["index"]]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_batches_and_their_order_do_not_depend_on_the_number_of_processes(workers):
    alone = list(inference_loader(Numbers(23), range(23), 2, 0))
    loaded = list(inference_loader(Numbers(23, slow=range(0, 23, 5)), range(23), 2, workers))
    assert [batch["index"] for batch in loaded] == [batch["index"] for batch in alone]
    for one, other in zip(loaded, alone, strict=True):
        assert torch.equal(one["raw_wav"], other["raw_wav"])
        assert torch.equal(one["padding_mask"], other["padding_mask"])
    assert workers_of(os.getpid()) == []


def test_an_endless_stream_is_loaded_ahead_and_its_processes_end_when_it_is_closed():
    loader = train_loader(Numbers(10), 2, 2, 0, 1, seed=5)
    assert [batch["index"] for batch in islice(loader, 9)] == stream(9)
    assert len(workers_of(os.getpid())) == 2
    loader.close()
    assert workers_of(os.getpid()) == []


def test_processes_start_while_other_threads_hold_the_locks_that_a_fork_would_copy():
    """The deadlock that was seen: validation's processes begin while a progress bar, a log and gloo have threads."""
    held, let_go, found = threading.Event(), threading.Event(), []

    def hold() -> None:
        logging._acquireLock()
        with tqdm.get_lock():
            held.set()
            let_go.wait()
        logging._releaseLock()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        loading = threading.Thread(target=lambda: found.extend(seen(eval_loader(Numbers(9), 2, 2, 0, 1))), daemon=True)
        loading.start()
        loading.join(60)
        assert found == list(range(9))
    finally:
        let_go.set()
        holder.join()


def test_a_process_that_is_killed_is_named_with_its_clips_after_all_batches_before():
    loader = inference_loader(Numbers(12, killed=[7]), range(12), 2, 2)
    assert [batch["index"] for batch in islice(loader, 3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(
        LoadingError, match=r"loader process \d+ was killed by signal SIGKILL .*/6\.wav, /7\.wav"
    ) as error:
        next(loader)
    assert all(part in str(error.value) for part in ("memory", "run.num_workers = 2", "run loads by itself"))
    assert workers_of(os.getpid()) == []


def test_a_process_that_crashes_sends_to_the_integrity_check():
    with pytest.raises(LoadingError, match=r"(?s)signal SIGSEGV .*/1\.wav.*--check-integrity.*integrity=verified"):
        list(inference_loader(Numbers(2, crashes=[1]), range(2), 1, 2))


def test_a_process_that_stands_still_is_noticed_and_named(monkeypatch):
    loader = inference_loader(Numbers(4, stands_still=[2]), range(4), 2, 1, timeout_minutes=7)
    assert next(loader)["index"] == [0, 1]  # whose process may take long to start
    wait = loader_module._wait
    monkeypatch.setattr(loader_module, "_wait", lambda *what: wait(*what[:2], what[2] / 420))
    with pytest.raises(LoadingError, match=r"stands still: .*loader_timeout_minutes = 7 .*/2\.wav, /3\.wav"):
        next(loader)
    assert workers_of(os.getpid()) == []


def test_what_loading_raises_is_raised_with_where_it_was():
    with pytest.raises(ZeroDivisionError) as error:
        list(inference_loader(Numbers(3, raises=[1]), range(3), 1, 2))
    assert "in __getitem__" in error.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_who_is_stopped_gets_no_more_batches(workers):
    stop = threading.Event()
    loader = inference_loader(Numbers(9), range(9), 1, workers, stopped=stop.is_set)
    assert [next(loader)["index"], next(loader)["index"]] == [[0], [1]]
    stop.set()
    assert seen(loader) == []


def test_a_stop_is_heard_while_a_batch_is_waited_for(monkeypatch):
    stopped, wait = threading.Event(), loader_module._wait

    def stopped_meanwhile(answers, *rest):
        return wait(SimpleNamespace(get=lambda timeout: stopped.set() or answers.get(timeout=timeout)), *rest)

    loader = inference_loader(
        Numbers(2, stands_still=[1]), range(2), 1, 1, stopped=stopped.is_set, timeout_minutes=HANG / 60
    )
    assert next(loader)["index"] == [0]
    monkeypatch.setattr(loader_module, "_wait", stopped_meanwhile)
    assert seen(loader) == []
    assert stopped.is_set()


def test_processes_share_the_list_of_usable_entries(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps({"annotation": [{"path": f"/{i}.wav", "text": ""} for i in range(3000)]})
    )
    dataset = SALMONNDataset(Annotations(tmp_path / "a.json"), ClipPaths(), 30.0)
    parts = Parcel(partial(load_items, dataset))
    assert os.fstat(parts.file.fileno()).st_size < dataset.usable.nbytes + 3000
    [(_, mapped)] = in_processes(partial(is_mapped, dataset), [()], jobs=1)
    assert mapped


def is_mapped(dataset: SALMONNDataset) -> bool:
    return not dataset.usable.flags.owndata


def test_a_process_that_loads_does_without_pytorch():
    [(_, loaded)] = in_processes(loaded_modules, [(load_items,)], jobs=1)
    assert {"salmonn.data.dataset", "soundfile"} <= loaded
    assert not {"torch", "transformers"} & loaded


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
    assert [batch for pair in zip(*ranks, strict=True) for batch in sorted(pair, key=alone.index)] == alone


@pytest.mark.parametrize("world_size", [2, 4])
def test_no_rank_of_a_sorted_step_has_the_longest_of_every_round(world_size):
    lengths = np.random.default_rng(0).integers(1, 1000, 640)
    settings = {"n": 640, "batch_size": 5, "world_size": world_size, "lengths": lengths, "steps": [4]}
    ranks = [stream(4, rank=rank, **settings) for rank in range(world_size)]
    padded = [sum(max(lengths[batch]) for batch in rank) for rank in ranks]
    assert max(padded) < 1.08 * min(padded)


@pytest.mark.parametrize("world_size", [2, 4])
def test_samples_that_are_dealt_one_by_one_are_as_long_on_each_rank_and_all_are_dealt(world_size):
    lengths = np.random.default_rng(0).integers(1, 1000, 640)
    settings = {"n": 640, "batch_size": 8, "world_size": world_size, "lengths": lengths, "steps": [1] * 4}
    ranks = [stream(4, rank=rank, dealt=1, **settings) for rank in range(world_size)]
    plain = [stream(4, rank=rank, n=640, batch_size=8, world_size=world_size) for rank in range(world_size)]
    for step in range(4):
        batches = [rank[step] for rank in ranks]
        assert sorted(chain(*batches)) == sorted(chain(*(rank[step] for rank in plain)))
        sums = [lengths[batch].sum() for batch in batches]
        assert max(sums) < 1.12 * min(sums)


def test_sorted_steps_go_on_where_a_run_stopped():
    assert sorted_steps([3, 6], first_sample=4 * 10) == sorted_steps([8, 2, 3, 6])[10:]


def test_steps_are_counted_anew_in_each_epoch_whose_last_step_may_be_smaller():
    run = OmegaConf.structured(RunConfig(batch_size_train=2, accum_grad_iters=4, iters_per_epoch=10))
    plan = make_plan(run, n_train=100, world_size=1)
    assert list(islice(plan.step_sizes(0), 7)) == [4, 4, 2, 4, 4, 2, 4]
    assert list(islice(plan.step_sizes(8), 3)) == [2, 4, 4]  # inside an epoch
    assert list(islice(plan.step_sizes(10), 2)) == [4, 4]  # at its end, before it is validated

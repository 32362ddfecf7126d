"""Answers of the model to a list of jobs: batched, shared among the ranks, every job exactly once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from salmonn.common import distributed
from salmonn.data.dataset import SALMONNDataset, collate
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.requests import Answer, Job, Output
from salmonn.model.salmonn import SALMONN

Ask = Callable[[dict[str, Any], Sequence[Job]], Sequence[Answer]]  # (batch, its jobs) -> an answer to each


def answer_all(
    ask: Ask,
    dataset: SALMONNDataset,
    jobs: Sequence[Job],
    config: DictConfig,
    description: str,
    store: AnswerStore | None = None,
) -> dict[int, Any]:
    """{position: answer} of all jobs in their order, of the kind that `ask` gives, the same on every rank.

    What `store` holds is not asked again. The longest clips come first: too little memory shows
    at once, and batches hold clips of like length. Raises RuntimeError if a job has no answer or
    several: loader and model must account for each.
    """
    done: dict[int, Answer] = distributed.from_main(store.read() if store and distributed.is_main() else {})
    left = sorted((job for job in jobs if job.position not in done), key=lambda job: -dataset.size(job.audio_index))
    mine = left[distributed.rank() :: distributed.world_size()]
    answers: list[tuple[int, Answer]] = []
    with tqdm(total=len(mine), desc=description, unit="clip", disable=not distributed.is_main()) as progress:
        for batch_answers in answer_batches(ask, dataset, mine, config):
            answers += batch_answers
            if store:
                store.add(batch_answers)
            progress.update(len(batch_answers))

    answered = [pair for share in distributed.gather_objects(answers) for pair in share]
    everywhere = [*answered, *((job.position, done[job.position]) for job in jobs if job.position in done)]
    by_position = dict(everywhere)
    if len(everywhere) != len(jobs) or by_position.keys() != {job.position for job in jobs}:
        raise RuntimeError(f"{len(jobs)} clips were to be answered, {len(everywhere)} answers came back")
    return {job.position: by_position[job.position] for job in jobs}


def answer_batches(
    ask: Ask, dataset: SALMONNDataset, jobs: Sequence[Job], config: DictConfig
) -> Iterator[list[tuple[int, Answer]]]:
    """Yield [(position, answer)] of this rank's jobs, a batch at a time."""
    by_audio = {job.audio_index: job for job in jobs}
    loader = DataLoader(
        Subset(dataset, list(by_audio)),
        batch_size=config.run.batch_size_eval,
        num_workers=config.run.num_workers,
        collate_fn=collate,
    )
    for batch in loader:
        heard = [by_audio[index] for index in batch["index"]]
        unreadable = batch["unreadable"].items()
        answers: list[tuple[int, Answer]] = [
            (by_audio[index].position, Output(unreadable=reason)) for index, reason in unreadable
        ]
        if heard:
            answers += zip([job.position for job in heard], ask(batch, heard), strict=True)
        yield answers


def generate_batch(model: SALMONN, config: DictConfig, batch: dict[str, Any], heard: Sequence[Job]) -> list[Output]:
    """The model's text for each job of a batch."""
    with distributed.autocast(config.run, model.device):
        details = model.generate(batch, config.generate, prompts=[job.prompt for job in heard], return_details=True)
    return [Output(detail["text"].strip(), len(detail["token_ids"]), detail["finished"]) for detail in details]

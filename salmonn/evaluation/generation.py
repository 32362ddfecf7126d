"""Answers of the model to a list of jobs: batched, shared among the ranks, every job exactly once."""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from salmonn import distributed
from salmonn.dataset import SALMONNDataset, collate
from salmonn.evaluation.answers import AnswerStore
from salmonn.evaluation.jobs import Job, Output
from salmonn.model import SALMONN


def generate_outputs(
    model: SALMONN,
    dataset: SALMONNDataset,
    jobs: Sequence[Job],
    config: DictConfig,
    description: str,
    store: AnswerStore | None = None,
) -> dict[int, Output]:
    """{position: output} of all jobs in their order, the same on every rank.

    What `store` holds is not generated again. The longest clips come first: too little memory shows
    at once, and batches hold clips of like length. Raises RuntimeError if a job has no output or
    several: loader and model must account for each.
    """
    done: dict[int, Output] = distributed.from_main(store.read() if store and distributed.is_main() else {})
    left = sorted((job for job in jobs if job.position not in done), key=lambda job: -dataset.size(job.audio_index))
    mine = left[distributed.rank() :: distributed.world_size()]
    outputs: list[tuple[int, Output]] = []
    with tqdm(total=len(mine), desc=description, unit="clip", disable=not distributed.is_main()) as progress:
        for batch_outputs in answer_batches(model, dataset, mine, config):
            outputs += batch_outputs
            if store:
                store.add(batch_outputs)
            progress.update(len(batch_outputs))

    answered = [pair for share in distributed.gather_objects(outputs) for pair in share]
    everywhere = [*answered, *((job.position, done[job.position]) for job in jobs if job.position in done)]
    by_position = dict(everywhere)
    if len(everywhere) != len(jobs) or by_position.keys() != {job.position for job in jobs}:
        raise RuntimeError(f"{len(jobs)} clips were to be answered, {len(everywhere)} answers came back")
    return {job.position: by_position[job.position] for job in jobs}


def answer_batches(
    model: SALMONN, dataset: SALMONNDataset, jobs: Sequence[Job], config: DictConfig
) -> Iterator[list[tuple[int, Output]]]:
    """Yield [(position, output)] of this rank's jobs, a batch at a time."""
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
        outputs = [(by_audio[index].position, Output(unreadable=reason)) for index, reason in unreadable]
        if heard:
            outputs += list(zip([job.position for job in heard], _answers(model, batch, heard, config), strict=True))
        yield outputs


def _answers(model: SALMONN, batch: dict[str, Any], heard: Sequence[Job], config: DictConfig) -> list[Output]:
    with distributed.autocast(config.run, model.device):
        details = model.generate(batch, config.generate, prompts=[job.prompt for job in heard], return_details=True)
    return [Output(detail["text"].strip(), len(detail["token_ids"]), detail["finished"]) for detail in details]

"""Answers of the model to a list of requests: batched, shared among the ranks, every request exactly once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from salmonn.common import distributed
from salmonn.common.device import autocast
from salmonn.common.samples import Samples
from salmonn.data.dataset import SALMONNDataset, collate
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.requests import Answer, Prediction, Request
from salmonn.model.salmonn import SALMONN

Ask = Callable[[Samples, Sequence[Request]], Sequence[Answer]]  # (batch, its requests) -> an answer to each


def answer_all(
    ask: Ask,
    dataset: SALMONNDataset,
    requests: Sequence[Request],
    config: DictConfig,
    description: str,
    store: AnswerStore | None = None,
) -> dict[int, Any]:
    """{position: answer} of all requests in their order, of the kind that `ask` gives, the same on every rank.

    What `store` holds is not asked again. The longest clips come first: too little memory shows
    at once, and batches hold clips of like length. Raises RuntimeError if a request has no answer or
    several: loader and model must account for each.
    """
    done: dict[int, Answer] = distributed.from_main(store.read() if store and distributed.is_main() else {})
    left = sorted(
        (request for request in requests if request.position not in done),
        key=lambda request: -dataset.size(request.audio_index),
    )
    mine = left[distributed.rank() :: distributed.world_size()]
    answers: list[tuple[int, Answer]] = []
    with tqdm(total=len(mine), desc=description, unit="clip", disable=not distributed.is_main()) as progress:
        for batch_answers in answer_batches(ask, dataset, mine, config):
            answers += batch_answers
            if store:
                store.add(batch_answers)
            progress.update(len(batch_answers))

    answered = [pair for share in distributed.gather_objects(answers) for pair in share]
    everywhere = [
        *answered,
        *((request.position, done[request.position]) for request in requests if request.position in done),
    ]
    by_position = dict(everywhere)
    if len(everywhere) != len(requests) or by_position.keys() != {request.position for request in requests}:
        raise RuntimeError(f"{len(requests)} clips were to be answered, {len(everywhere)} answers came back")
    return {request.position: by_position[request.position] for request in requests}


def answer_batches(
    ask: Ask, dataset: SALMONNDataset, requests: Sequence[Request], config: DictConfig
) -> Iterator[list[tuple[int, Answer]]]:
    """Yield [(position, answer)] of this rank's requests, a batch at a time."""
    by_audio = {request.audio_index: request for request in requests}
    loader = DataLoader(
        Subset(dataset, list(by_audio)),
        batch_size=config.run.batch_size_eval,
        num_workers=config.run.num_workers,
        collate_fn=collate,
    )
    for batch in loader:
        heard = [by_audio[index] for index in batch["index"]]
        unreadable = batch["left_out"].items()
        answers: list[tuple[int, Answer]] = [
            (by_audio[index].position, Prediction(unreadable=reason)) for index, reason in unreadable
        ]
        if heard:
            answers += zip([request.position for request in heard], ask(batch, heard), strict=True)
        yield answers


def generate_batch(model: SALMONN, config: DictConfig, batch: Samples, heard: Sequence[Request]) -> list[Prediction]:
    """The model's text for each request of a batch."""
    with autocast(config.run, model.device):
        details = model.generate(
            batch, config.generate, prompts=[request.prompt for request in heard], return_details=True
        )
    return [Prediction(detail["text"].strip(), len(detail["token_ids"]), detail["finished"]) for detail in details]

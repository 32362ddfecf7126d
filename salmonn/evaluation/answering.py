"""The model's answers to a set, or to a list of requests: batched, shared among the ranks, each exactly once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from salmonn.common import distributed
from salmonn.common.device import autocast
from salmonn.common.errors import UserError
from salmonn.common.samples import Samples
from salmonn.config.loading import generate_config
from salmonn.data.dataset import SALMONNDataset
from salmonn.data.loader import inference_loader
from salmonn.evaluation.answer_store import AnswerStore
from salmonn.evaluation.choice_answering import OptionLosses, generate_unheard, option_losses, picks_of
from salmonn.evaluation.provenance import build_provenance, earlier_commits, fingerprint
from salmonn.evaluation.requests import ChoiceAnswers, Outcome, Prediction, Request, shuffle_audio
from salmonn.evaluation.sets import EvalSet
from salmonn.model.salmonn import SALMONN

Ask = Callable[[Samples, Sequence[Request]], Sequence[Outcome]]  # (batch, its requests) -> an answer to each


class NothingHeardError(UserError):
    """No clip of a set can be read."""


@dataclass
class AnsweredSet:
    """A set with the model's answers: all that a report is made of."""

    set: EvalSet
    predictions: dict[int, Prediction]  # by position in the set
    shuffled: dict[int, Prediction] | None  # to the same prompts with other clips' audio
    config: DictConfig  # with the task's generation settings
    provenance: dict[str, Any]
    folder: Path  # of its results
    report: dict[str, Any] = field(default_factory=dict)  # once the set is scored, on rank 0
    choices: ChoiceAnswers | None = None  # of multiple choice


def answer_set(model: SALMONN, one: EvalSet, config: DictConfig, folder: Path) -> AnsweredSet:
    """Answer a set; what was answered before under the same provenance is not asked again.

    The answers are in `folder` as they come. Raises NothingHeardError where no clip can be read.
    """
    task, requests = one.task, one.requests
    dataset = one.open_clips(config.datasets, model.max_seconds)
    config = OmegaConf.merge(config, {"generate": generate_config({**config.generate, **task.generate})})
    provenance = build_provenance(config, task.annotation, model.lora_scaling)
    name = f"answers-{fingerprint(provenance, [request.prompt for request in requests])}"
    store = AnswerStore(folder / "answers", name, provenance["commit"])
    ask = partial(generate_batch, model, config)
    predictions = answer_all(ask, dataset, requests, config, task.name, store, model.lending())
    heard = [request for request in requests if not predictions[request.position].unreadable]
    if not heard:
        raise NothingHeardError(one.nothing_heard(predictions[0].unreadable, config.datasets))
    commits = store.commits

    def asked(part: str, requests: Sequence[Request], ask: Ask, kind: type[Outcome] = Prediction) -> dict[int, Any]:
        pairs = [f"{request.audio_index} {request.prompt}" for request in requests]
        name = f"{part}-{fingerprint(provenance, pairs)}"
        kept = AnswerStore(folder / "answers", name, provenance["commit"], kind)
        description = f"{task.name}, {part.replace('_', ' ')}"
        answers = answer_all(ask, dataset, requests, config, description, kept, model.lending())
        commits.update(kept.commits)
        return answers

    is_controlled = config.evaluate.shuffled_control and task.is_scored
    exchanged = shuffle_audio(heard) if is_controlled else []  # who hears whom depends on which clips can be read
    shuffled = asked("shuffled", exchanged, ask) if exchanged else None
    choices = None
    if task.has_choices:
        with_audio, without_audio = (partial(option_losses, model, config, one, hears) for hears in (True, False))
        choices = ChoiceAnswers(picks_of(one, predictions, asked("likelihoods", heard, with_audio, OptionLosses)))
        if shuffled is not None:
            losses = asked("shuffled_likelihoods", exchanged, with_audio, OptionLosses)
            choices.shuffled = picks_of(one, shuffled, losses)
        if is_controlled:
            choices.unheard = asked("no_audio", heard, partial(generate_unheard, model, config))
            losses = asked("no_audio_likelihoods", heard, without_audio, OptionLosses)
            choices.of_unheard = picks_of(one, choices.unheard, losses)
    if model.encoder_cache:
        model.encoder_cache.report()
    provenance |= earlier_commits(provenance, commits)
    return AnsweredSet(one, predictions, shuffled, config, provenance, folder, choices=choices)


def answer_all(
    ask: Ask,
    dataset: SALMONNDataset,
    requests: Sequence[Request],
    config: DictConfig,
    description: str,
    store: AnswerStore | None = None,
    lending: AbstractContextManager[None] | None = None,
) -> dict[int, Any]:
    """{position: answer} of all requests in their order, of the kind that `ask` gives, the same on every rank.

    What `store` holds is not asked again. The longest clips come first: too little memory shows
    at once, and batches hold clips of like length. `lending`: of the model that is asked. Raises
    RuntimeError if a request has no answer or several: loader and model must account for each.
    """
    done: dict[int, Outcome] = distributed.from_main(store.read() if store and distributed.is_main() else {})
    left = sorted(
        (request for request in requests if request.position not in done),
        key=lambda request: -dataset.size(request.audio_index),
    )
    mine = left[distributed.rank() :: distributed.world_size()]
    answers: list[tuple[int, Outcome]] = []
    progress = tqdm(total=len(mine), desc=description, unit="clip", disable=not (mine and distributed.is_main()))
    with progress, lending or nullcontext():
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
) -> Iterator[list[tuple[int, Outcome]]]:
    """Yield [(position, answer)] of this rank's requests, a batch at a time."""
    by_audio, run = {request.audio_index: request for request in requests}, config.run
    order, timeout = list(by_audio), run.loader_timeout_minutes
    loader = inference_loader(dataset, order, run.batch_size_eval, run.num_workers, timeout_minutes=timeout)
    with closing(loader) as batches:
        for batch in batches:
            heard = [by_audio[index] for index in batch["index"]]
            unreadable = batch["left_out"].items()
            answers: list[tuple[int, Outcome]] = [
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
    return [Prediction.of(detail) for detail in details]

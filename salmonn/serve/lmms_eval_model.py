"""SALMONN as a model of lmms-eval: a clip and a question of a task at a time, answered in batches.

lmms-eval --model salmonn --model_args cfg_path=configs/released.yaml --tasks librispeech_test_clean --batch_size 8
"""

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from salmonn.common.cli import tell
from salmonn.common.errors import UserError
from salmonn.config.loading import load_config
from salmonn.inference.engine import InferenceEngine, tell_if_untrained
from salmonn.serve.harness import cut_off, read_media, search_settings


class Salmonn(lmms):
    """What lmms-eval makes of `--model salmonn`."""

    def __init__(
        self,
        cfg_path: str = "configs/evaluate.yaml",
        ckpt: str = "",
        options: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        """`options`: KEY=VALUE of the config, with spaces between them. Raises UserError for what cannot be."""
        super().__init__()
        if unknown:
            raise UserError(f"--model_args: {', '.join(unknown)}: unknown; there are cfg_path, ckpt, options")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"--batch_size {batch_size}: give a number, 1 or more")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("salmonn answers lmms-eval in one process: start it without accelerate launch or torchrun")
        given = [f"run.device={device}"] * bool(device)
        config = load_config(cfg_path, [*given, *shlex.split(options)], ckpt)
        self.batch_size = int(batch_size)
        self.engine = InferenceEngine.load(config)
        tell_if_untrained(config)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers, in the order of the requests."""
        alike: dict[str, list[int]] = defaultdict(list)  # requests that may share a batch
        for position, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(position)
        answers = [""] * len(requests)
        n_cut = 0
        with tqdm(total=len(requests), desc="SALMONN", unit="clip") as progress:
            for positions in alike.values():
                for start in range(0, len(positions), self.batch_size):
                    batch = positions[start : start + self.batch_size]
                    texts, cut = self._answer([requests[position] for position in batch])
                    for position, text in zip(batch, texts, strict=True):
                        answers[position] = text
                    n_cut += cut
                    progress.update(len(batch))
        if n_cut:
            seconds = self.engine.model.max_seconds
            tell(f"note: of {n_cut} clips longer than {seconds:g} s only the beginning was heard")
        return answers

    def _answer(self, requests: Sequence[Instance]) -> tuple[list[str], int]:
        """The texts, and how many clips were cut; of requests with the same settings."""
        search, until = search_settings(requests[0].args[1], self.engine.config.generate)
        heard = self.engine.hear([self._clip(request) for request in requests])
        questions = [self.engine.question(request.args[0]) for request in requests]
        details = self.engine.answer_rows(heard.embeds, questions, search, heard.spelling)
        return [cut_off(detail["text"], until) for detail in details], sum(heard.cut)

    def _clip(self, request: Instance) -> np.ndarray:
        _, _, doc_to_visual, doc_id, task, split = request.args
        given = doc_to_visual(self.task_dict[task][split][doc_id])
        given = given if isinstance(given, list) else [given]
        if len(given) != 1:
            raise UserError(f"{task}, {doc_id}: {len(given)} media; SALMONN answers about one clip")
        return read_media(self.engine, given[0], f"{task}, {doc_id}")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not to be had. Raises UserError."""
        raise UserError(f"{requests[0].task_name}: asks for likelihoods; salmonn writes answers (generate_until)")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not to be had. Raises UserError."""
        raise UserError(f"{requests[0].task_name}: asks in several rounds; salmonn answers one question about a clip")

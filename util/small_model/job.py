"""What is asked for of `util/small.py`, where its things are, and what each config is told."""

import json
import math
from argparse import Namespace
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf

from salmonn.common.device import computes_bfloat16
from salmonn.common.errors import UserError
from salmonn.common.files import read_json
from salmonn.config.loading import load_config
from salmonn.model.tokenizer import load_tokenizer
from util.jobs import moved
from util.small_model import sources
from util.small_model.recordings import Recording
from util.small_model.records import read_records
from util.small_model.voices import Spoken

CONFIGS, DEFAULT_OUT = "configs/small", "output/small"
CONFIG_OF = {  # a part that uses one: its name, with which --options may begin
    **{stage: stage for stage in ("stage0", "stage1", "stage2")},
    **{"stories": "stories", "stage3": "stage3", "evaluation": "evaluate"},
}
ALL = "all"  # what they begin with where they are for every config
IN_BFLOAT16 = [  # the configs are in float32, which is several times faster on a processor without units for bfloat16
    "run.amp=True", "run.amp_dtype=bf16", "model.llm_dtype=bfloat16", "model.encoder_dtype=bfloat16",
]  # fmt: skip
_PROCESSES = 2  # that the configs are made for
_ITERATIONS = "run.iters_per_epoch"
_LENGTHS = (_ITERATIONS, "run.optims.warmup_steps", "run.valid_every_steps")
_CHATML = "<|im_start|>"  # which SmolLM2 has as its BOS, and Qwen not


@dataclass(frozen=True)
class Small:
    """What was asked for, and where things are."""

    args: Namespace

    @property
    def out(self) -> Path:
        return self.args.out

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def downloads(self) -> Path:
        return self.out / "downloads"

    @cached_property
    def recordings(self) -> list[Recording]:
        return read_records(self.data / "recordings.json", Recording)

    def spoken(self, split: str) -> list[Spoken]:
        return read_records(self.data / f"{spoken_name(split)}.json", Spoken)

    @cached_property
    def max_seconds(self) -> float:
        """Of a clip that is trained on: what the model hears."""
        return load_config(f"{CONFIGS}/stage1.yaml", self.options("stage1")).model.max_seconds

    @property
    def whisper(self) -> Path:
        return self.args.whisper or self.model(sources.HUB_WHISPER)

    def annotations(self, name: str) -> Path:
        return self.out / "ann" / f"{name}.json"

    def model(self, hub_name: str) -> Path:
        """The folder of a model that was not given."""
        return self.out / "models" / hub_name.rpartition("/")[2].lower()

    def given_models(self) -> dict[str, Path]:
        given = {"whisper": self.args.whisper, "llama": self.args.llm}
        return {key: path for key, path in given.items() if path is not None}

    def options(self, name: str) -> list[str]:
        """What a config is told: folder, models, precision of this processor, processes, the user's own changes."""
        options = moved(f"{CONFIGS}/{name}.yaml", DEFAULT_OUT, str(self.out))
        options += [f"model.{key}_path={path}" for key, path in self.given_models().items()]
        options += self._template
        if name != "decode":  # one answer is soon there in float32, too, and its command stays short
            options += IN_BFLOAT16 if computes_bfloat16() else []
        if name.startswith("stage"):
            options += self._lengths(name)
        return [*options, *own_options(self.args, ALL), *own_options(self.args, name)]

    @cached_property
    def _template(self) -> list[str]:
        """ChatML's first token in front of the prompt, where the tokenizer of a given model does not put it there."""
        if self.args.llm is None:
            return []
        options = [f"model.llama_path={self.args.llm}", *own_options(self.args, ALL)]
        try:
            model = load_config(f"{CONFIGS}/decode.yaml", options).model
            begins = load_tokenizer(model).bos_token == _CHATML
        except UserError:  # told with all else that is wrong, before anything is done
            return []
        return [] if begins else [f"model.prompt_template={json.dumps(_CHATML + model.prompt_template)}"]

    def _lengths(self, stage: str) -> list[str]:
        """A stage's iterations, of which its samples stay the same on any number of processes.

        Stage 3 trains each story once that was written.
        """
        config, n = load_config(f"{CONFIGS}/{stage}.yaml"), self.args.processes
        planned = {key: OmegaConf.select(config, key) for key in _LENGTHS}
        lengths = {key: math.ceil(_PROCESSES * length / n) for key, length in planned.items()}
        if stage == "stage3":
            file = self.annotations("stage3_train")
            lengths[_ITERATIONS] = math.ceil((n_entries(file) if file.is_file() else self.args.stories) / n)
        return [f"{key}={length}" for key, length in lengths.items() if length != planned[key]]


def own_options(args: Namespace, name: str) -> list[str]:
    """The user's for the config of this name."""
    own = [option.partition(":") for option in args.options]
    return [option for stage, _, option in own if stage == name]


def spoken_name(split: str) -> str:
    """Of the folder of a split's synthetic clips, and of the list of them."""
    return f"spoken_{split}"


def n_entries(annotations: Path) -> int:
    """How many entries an annotation file has."""
    return len(read_json(annotations)["annotation"])

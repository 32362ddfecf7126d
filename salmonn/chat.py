"""Talk to a SALMONN about what it hears, in a conversation or with one question.

  python -m salmonn.chat                                         a conversation; /help there shows what can be typed
  python -m salmonn.chat --audio clip.wav                        the same, the clip heard already
  python -m salmonn.chat --audio clip.wav --prompt "Who speaks?"
  python -m salmonn.chat --audio a.wav b.flac --task asr --json
  python -m salmonn.chat --audio lecture.mp3 --long --task asr
  python -m salmonn.chat --cfg-path configs/mini/decode.yaml --audio clip.wav --task QA --question "What colour?"

The answer goes to stdout, all else to stderr. With one beam (--options generate.num_beams=1) it appears
word by word. Of a clip longer than the model hears (30 s) only the beginning is heard; --long cuts it into
windows, asks about each, and puts the answers together: transcripts (--task asr) by the words that
overlapping windows share, other answers as a line per window.
"""

import codecs
import difflib
import io
import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from salmonn.audio.decode import AudioError, inspect_header
from salmonn.audio.silence import too_little
from salmonn.common.cli import asking_parser, run_cli, tell, tell_wait
from salmonn.common.errors import UserError
from salmonn.common.imports import importing
from salmonn.common.screen import printable
from salmonn.config.installed import here_or_installed
from salmonn.config.loading import load_config
from salmonn.model.prompts import load_test_prompts, task_prompt
from salmonn.preflight import MINI_ANSWERS, require_files, require_loadable

if TYPE_CHECKING:
    from salmonn.inference.engine import Answer, EncodedAudio, InferenceEngine, Question


HELP = """\
Plain text is a question about the clip. A line that begins with / is a command:
  /audio FILE             hear another clip
  /task NAME [QUESTION]   ask a task's test prompt, e.g. /task asr; /task alone lists the tasks
  /scale NUMBER           weight of the LoRA adapters, e.g. 2.0 (trained with lora_alpha / lora_rank)
  /beams NUMBER           beams of the search; with 1 the answer appears word by word
  /help, /quit            this text; leave (as Ctrl-D); arrow keys bring back lines
  Ctrl-C                  stops an answer; under torchrun it ends all"""


def main() -> None:
    """Answer one question, or hold a conversation."""
    args = parse_arguments()
    config = load_config(args.cfg_path, args.options, args.ckpt)
    require_audio(args.audio)  # a wrong path, or question, is known before the model is loaded
    require_task(config.model, args)

    what = "this question" if args.task or args.prompt is not None else "this conversation"
    require_files(config, (), (), what, MINI_ANSWERS)

    tell_wait(f"loading {config.model.ckpt or config.model.llama_path}")
    with importing():  # torch and transformers load only now
        from salmonn.common import distributed
        from salmonn.common.logging import setup_logging
        from salmonn.inference.engine import InferenceEngine, tell_if_untrained
        from salmonn.model.salmonn import load_for_inference

    setup_logging()
    logging.getLogger().setLevel(logging.WARNING)
    require_loadable(config, what)  # with the device, which `init` would tell alone
    distributed.init(config)
    engine = InferenceEngine(load_for_inference(config), config)
    with distributed.patiently(), engine.model.lending():
        if distributed.is_main():  # the others hold their shares of the LLM
            tell_if_untrained(config)
            if args.task or args.prompt is not None:
                answer_once(engine, args)
            else:
                converse(Chat(engine, args.long, args.overlap), args.audio)
    distributed.shutdown()


def parse_arguments() -> Namespace:
    """The command line. Raises UserError for options that do not go together."""
    parser = asking_parser(__doc__)
    add = parser.add_argument
    add("--audio", nargs="+", default=[], metavar="FILE", help="clips; several are answered as one batch")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", metavar="TEXT", help="ask this about each clip, and end")
    asked.add_argument("--task", default="", metavar="NAME", help="ask this task's test prompt, and end")
    add("--question", default="", metavar="TEXT", help="fills {} in the prompt of --task")
    add("--json", action="store_true", help="print a JSON object per clip")
    add("--long", action="store_true", help="hear clips of any length, in windows of what the model hears at once")
    add(
        "--overlap",
        type=float,
        metavar="SECONDS",
        help="of these windows (default: 5, of windows under 7 s three quarters)",
    )
    args = parser.parse_args()
    is_asked = bool(args.task) or args.prompt is not None
    wrong = {
        "--prompt is empty: write what you want to know": args.prompt is not None and not args.prompt.strip(),
        "--prompt and --task ask about clips: name them with --audio": is_asked and not args.audio,
        "--json needs --prompt or --task": args.json and not is_asked,
        "--question fills the prompt of --task; a question of your own is --prompt": args.question and not args.task,
        "several clips need --prompt or --task; a conversation is about one": len(args.audio) > 1 and not is_asked,
        "--overlap is for --long": args.overlap is not None and not args.long,
    }
    if problems := [problem for problem, is_wrong in wrong.items() if is_wrong]:
        raise UserError("\n".join(problems))
    return args


def require_audio(paths: Sequence[str]) -> None:
    """Raises UserError that names every file whose header tells that it cannot be heard."""
    problems = []
    for path in paths:
        try:
            inspect_header(path)
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def require_task(model: DictConfig, args: Namespace) -> None:
    """Raises UserError for a task whose test prompt does not fit --question, or that has none in the prompt file."""
    if args.task and here_or_installed(model.test_prompt_path).is_file():  # else it is told as missing
        task_prompt(load_test_prompts(model.test_prompt_path, model.prompt_template), args.task, args.question)


# ---- one question


def answer_once(engine: "InferenceEngine", args: Namespace) -> None:
    """Ask the question of the command line about its clips and print the answers."""
    question = engine.task_question(args.task, args.question) if args.task else engine.question(args.prompt)
    for paths in [[path] for path in args.audio] if args.long else [args.audio]:
        heard = hear(engine, paths, args.long, args.overlap)
        if args.json:
            for path, answer in zip(paths, engine.ask(heard, question), strict=True):
                print(json_line(as_json(path, question, answer, heard)), flush=True)
        else:
            show_answers(engine, heard, question, engine.config.generate, args.audio[1:] and paths)


def json_line(values: dict) -> str:
    """JSON that stdout takes as it is: with letters where it has them all, and none of them an order to a terminal."""
    line = json.dumps(values, ensure_ascii=False)
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return line if is_utf8 and line == printable(line) else json.dumps(values)


def as_json(path: str, question: "Question", answer: "Answer", heard: "EncodedAudio") -> dict:
    """What a program wants to know of an answer."""
    fields = {"audio": path, "prompt": question.prompt, "answer": answer.text, "finished": answer.finished}
    if answer.parts:
        spans = zip(heard.spans, answer.parts, strict=True)
        fields["windows"] = [{"start": span.start, "end": span.end, "answer": part} for span, part in spans]
    return fields


def hear(engine: "InferenceEngine", paths: Sequence[str], in_windows: bool, overlap: float | None) -> "EncodedAudio":
    """Let the model hear clips, or one clip in windows; tells what of them was not heard as a whole."""
    seconds = engine.model.max_seconds
    if in_windows:
        heard = engine.hear_long(paths[0], overlap)
        tell_too_little(paths[0], sum(heard.sound))
        if len(heard.spans) > 1:
            tell(
                f"note: {paths[0]}: {heard.spans[-1].end:.1f} s, put together from {len(heard.spans)} windows; the "
                f"model hears {seconds:g} s at once (the published one 30 s) and knows nothing of the other windows"
            )
        return heard
    heard = engine.hear(paths)
    for path, is_cut, sound in zip(paths, heard.cut, heard.sound, strict=True):
        if is_cut:
            tell(f"note: {path}: only the first {seconds:g} s are heard; --long hears all of it")
        tell_too_little(path, sound)
    return heard


def tell_too_little(path: str, seconds: float) -> None:
    """Say of a clip in which hardly anything is to be heard that the answer is about nothing."""
    if problem := too_little(seconds):
        tell(f"note: {path}: {problem}; the model answers all the same")


def show_answers(
    engine: "InferenceEngine",
    heard: "EncodedAudio",
    question: "Question",
    settings: DictConfig,
    names: Sequence[str] = (),
) -> None:
    """Print the answers behind the clips' names if there are any; without, one row with one beam word by word."""
    from transformers import TextStreamer

    streamer = None
    if settings.num_beams == 1 and len(heard.embeds) == 1 and not names:
        streamer = TextStreamer(engine.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answers = engine.ask(heard, question, settings, streamer)
    for number, answer in enumerate(answers):
        if streamer is None:
            print(f"{names[number]}: {answer.text}" if names else answer.text, flush=True)
        if not answer.finished:
            tell(f"note: the answer was cut off after {settings.max_new_tokens} tokens (generate.max_new_tokens)")


# ---- conversation


class Chat:
    """A conversation about one clip at a time."""

    def __init__(self, engine: "InferenceEngine", in_windows: bool = False, overlap: float | None = None) -> None:
        self.engine = engine
        self.in_windows, self.overlap = in_windows, overlap
        self.settings: DictConfig = engine.config.generate
        self.heard: EncodedAudio | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/audio": self.hear,
            "/task": self.ask_task,
            "/scale": self.set_scaling,
            "/beams": self.set_beams,
            "/help": lambda _: print(HELP, flush=True),
        }

    def obey(self, line: str) -> None:
        """Do what a line says. Raises UserError for whatever cannot be done; the clip heard stays."""
        if not line.startswith("/"):
            return self.ask(self.engine.question(line))
        name, _, operand = line.partition(" ")
        if name not in self.commands:
            near = difflib.get_close_matches(name, self.commands, n=1)
            raise UserError(f"{name} is no command{f' (did you mean {near[0]}?)' if near else ''}; /help shows all")
        return self.commands[name](operand.strip())

    def ask(self, question: "Question") -> None:
        """Print the answer about the current clip."""
        if self.heard is None:
            raise UserError("no clip is heard yet: /audio FILE")
        show_answers(self.engine, self.heard, question, self.settings)

    def ask_task(self, operand: str) -> None:
        """NAME [QUESTION]; without a name the tasks are listed."""
        if not operand:
            print(", ".join(self.engine.model.test_prompts), flush=True)
            return
        name, _, question = operand.partition(" ")
        self.ask(self.engine.task_question(name, question))

    def hear(self, operand: str) -> None:
        """FILE, perhaps in quotes, as a file manager drops it."""
        if not operand:
            raise UserError("/audio FILE: which file?")
        path = os.path.expanduser(operand.strip("'\""))
        self.heard = hear(self.engine, [path], self.in_windows, self.overlap)
        tell(f"listening to {path}")

    def set_scaling(self, operand: str) -> None:
        """NUMBER, from 0."""
        self.engine.model.lora_scaling = number(operand, float, 0, 1000)
        tell(f"LoRA scaling {self.engine.model.lora_scaling:g}")

    def set_beams(self, operand: str) -> None:
        """NUMBER, from 1."""
        from salmonn.inference.engine import MOST_BEAMS

        beams = number(operand, int, 1, MOST_BEAMS)
        self.settings = OmegaConf.merge(self.settings, {"num_beams": beams})
        tell(f"{beams} beams" if beams > 1 else "1 beam: answers appear word by word")


def converse(chat: Chat, audio: Sequence[str]) -> None:
    """Read lines and obey them until /quit or Ctrl-D; nothing else ends it but Ctrl-C under torchrun."""
    with suppress(ImportError):
        import readline  # noqa: F401  (gives `input` arrow keys and a history where the system has it)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    tell("Ask about a clip; /help shows what else can be typed.")
    lines = [f"/audio {path}" for path in audio]
    # torchrun hears it, too: it interrupts all its processes, and kills after 30 s those that go on
    ctrl_c: tuple[type[BaseException], ...] = () if "TORCHELASTIC_RUN_ID" in os.environ else (KeyboardInterrupt,)
    while True:
        try:
            line = lines.pop() if lines else input("> ").strip()
        except EOFError:
            print()
            return
        except ctrl_c:
            tell("\n(Ctrl-D or /quit leaves)")
            continue
        if line == "/quit":
            return
        try:
            chat.obey(line)
        except UserError as error:
            tell(f"error: {error}")
        except ctrl_c:
            tell("\n(stopped)")


def number(text: str, kind: type[int] | type[float], least: float, most: float) -> float:
    """A number from what was typed. Raises UserError for anything that is not within the limits."""
    with suppress(ValueError):
        value = kind(text)
        if least <= value <= most:
            return value
    what = "a whole number" if kind is int else "a number"
    raise UserError(f"{text!r}: give {what} from {least:g} to {most:g}")


if __name__ == "__main__":
    run_cli(main)

"""What a job of `util/small.py` was asked for, what is done of it and how long that took, noted in its folder."""

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

from filelock import FileLock, Timeout

from salmonn.common.errors import UserError
from salmonn.common.files import write_json
from salmonn.config.digest import BOOKKEEPING, config_digest
from salmonn.config.loading import load_config
from salmonn.evaluation.provenance import file_hash
from util.jobs import read_note
from util.small_model.job import ALL, CONFIG_OF, CONFIGS, own_options

_STATE = "state.json"  # what was asked for, and the minutes of each part that is done or was stopped
_NOTED_SECONDS = 30.0  # between notes of how long a part has worked
_USED_BY = {  # the first part that goes by what was asked for: it may be changed until that is done
    **dict.fromkeys(("out", "whisper", "llm", "options"), "models"),
    **dict.fromkeys(("prompts", "recordings"), "recordings"),
    "clips": "voices",
    **dict.fromkeys(("corpus", "train_split", "valid_split", f"options {ALL}"), "annotations"),
    **dict.fromkeys(("stories", "min_story_words"), "stories"),
    **{f"options {name}": part for part, name in CONFIG_OF.items()},
}


def read_state(args: Namespace) -> dict:
    """What was asked for, and the minutes of the parts that are done and of those that were stopped.

    Raises UserError where it was something else by which a part was done.
    """
    asked = {key: str(value) for key, value in vars(args).items() if key in _USED_BY}
    whole = asked.pop("options")  # as earlier versions note them
    for name in (ALL, *CONFIG_OF.values()):
        asked[f"options {name}"] = _deciding(own_options(args, name))
    note = read_note(args.out / _STATE, {"asked": dict, "minutes": dict})
    state = {"minutes": {}, "stopped": {}, "configs": {}, **note, "asked": asked}
    settled = {*state["minutes"], *({"voices"} & state["stopped"].keys())}  # clips that are spoken go by their numbers
    now, before = {"options": whole, **asked}, note.get("asked", {})
    before |= {key: _deciding(text.split()) for key, text in before.items() if key.startswith("options ")}
    if differing := [key for key in now if _USED_BY[key] in settled and before.get(key, now[key]) != now[key]]:
        raise _other(args.out, ", ".join(f"--{key.replace('_', '-')} {before[key]}" for key in sorted(differing)))
    return state


def _deciding(options: Sequence[str]) -> str:
    """Those options that decide on a result, also of the notes of earlier versions, which kept the others, too."""
    return " ".join(option for option in options if not option.startswith(BOOKKEEPING)) or "none"


def note_prompts(args: Namespace, state: dict) -> None:
    """Put what --prompts holds into the state, until it is read. Raises UserError where other content was read."""
    if args.prompts is None or not args.prompts.is_file():
        return
    found = file_hash(str(args.prompts))
    if "recordings" in state["minutes"] and state.get("prompts_sha256", found) != found:
        raise _other(args.out, f"--prompts {args.prompts} before its content was changed")
    state["prompts_sha256"] = found


def _other(out: Path, told: str) -> UserError:
    return UserError(f"{out} was made with {told}: ask for the same, choose another --out, or remove it")


def told_of(part: str, state: dict) -> str:
    """What is said of a part that is done: by which config, where that is another one today."""
    noted = state["configs"].get(part)  # earlier versions note none
    if noted is None or noted == _digest(part):
        return "done before"
    return f"done before, by another {CONFIGS}/{CONFIG_OF[part]}.yaml than today's: another --out goes by this one"


def _digest(part: str) -> str:
    return config_digest(load_config(f"{CONFIGS}/{CONFIG_OF[part]}.yaml"))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other jobs out of the folder. Raises UserError where one is at work there."""
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(out / ".lock", timeout=0))
        except Timeout as error:
            raise UserError(f"another util/small.py is at work in {out}: end it, or choose another --out") from error
        except (NotImplementedError, OSError) as error:  # a file system without locks
            print(f"{out} cannot be locked ({error}): take care that no second job writes there", flush=True)
        yield


@contextmanager
def counting(out: Path, done: dict, name: str) -> Iterator[None]:
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

    if name in CONFIG_OF:
        done["configs"][name] = _digest(name)
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

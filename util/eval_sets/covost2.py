"""CoVoST 2, English to other languages: translations of Common Voice 4 clips.

Audio: the English part of Common Voice Corpus 4 (2019-12-10), en/clips/*.mp3, CC0. Translations:
dl.fbaipublicfiles.com/covost/covost_v2.en_LANG.tsv.tar.gz, CC0: columns path, translation, split; or what
the corpus' get_covost_splits.py makes of it, covost_v2.en_LANG.test.tsv: path, sentence, translation, client_id.
Tab-separated without quoting, backslash escapes. 15,531 test clips, the same for all languages.
"""

from collections.abc import Iterator
from pathlib import Path

from util.eval_sets.base import Item, MissingError, Request
from util.eval_sets.tables import bad, source, tsv_rows


def read(request: Request, language: str, task: str) -> Iterator[Item]:
    """Speech translation; paths are those of the corpus, .mp3."""
    table = request.table or _find_table(request.root, language)
    clips = request.audio or request.root / "clips"
    for line, row in tsv_rows(table, ["path", "translation"], escape="\\"):
        if row.get("split", "test") != "test":
            continue
        if not row["path"]:
            raise bad(table, line, "path is empty")
        clip = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
        translation, spoken = (row["translation"],), row.get("sentence", "")
        yield Item(Path(clip).stem, clips / clip, translation, task, source(table, line), spoken=spoken)


def _find_table(root: Path, language: str) -> Path:
    candidates = [root / f"covost_v2.en_{language}{part}.tsv" for part in (".test", "")]
    found = next((path for path in candidates if path.is_file()), None)
    if not found:
        raise MissingError(f"neither {candidates[0]} nor {candidates[1].name} is there; --table says where it is")
    return found

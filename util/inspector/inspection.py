"""One annotation file looked at from the sides that are asked for; each is printed and returned."""

import sys
from argparse import Namespace
from collections import Counter
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from salmonn.common.errors import UserError
from salmonn.config.schema import DatasetsConfig
from salmonn.data.annotations import Annotations
from salmonn.data.clip_paths import ClipPaths, FolderCache
from salmonn.data.integrity import check_files, kind_of
from salmonn.data.unreadable import distinct_files, entries_left_out, unusable_files, unverified_files
from util.inspector.readiness import Folders, Key, Readiness, count_ready

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERDICTS = "verdicts.jsonl"
_FAILED_SHOWN = 5  # clips that are broken, or could not be converted


class Inspection:
    """What is asked about one annotation file (`args` as util/anns_inspector.py takes them)."""

    def __init__(
        self, path: Path, clip_paths: ClipPaths, args: Namespace, max_txt_len: int = 300, end_sym: str = "</s>"
    ) -> None:
        self.path, self.clip_paths, self.args = path, clip_paths, args
        self.max_txt_len, self.end_sym = max_txt_len, end_sym
        self.exists = FolderCache().exists
        # beside the annotation file: the paths of a private corpus do not land in the repository's ann/
        self.verdicts: Path = args.verdicts or path.parent / VERDICTS

    def run(self) -> dict[str, Any]:
        """Everything that is asked for, in this order. Raises UserError for bad input."""
        args, report = self.args, self._readiness()
        parts = {
            "missing": (args.list_missing, self._list_missing),
            "integrity": (args.check_integrity, self._integrity),
            "clips": (args.describe, self._describe),
            "statistics": (args.stats, self._statistics),
            "duplicates": (args.duplicates, self._duplicates),
            "split": (args.split, self._split),
            "converted": (args.convert, self._convert),
        }
        for name, (asked, part) in parts.items():
            if asked:
                report[name] = part()
                print(flush=True)
        return report

    @cached_property
    def annotations(self) -> Annotations:
        """The file, opened by its index."""
        return Annotations(self.path, need_text=False)

    @cached_property
    def files(self) -> dict[str, str]:
        """{file: corpus} of the clips that are there."""
        found = distinct_files(self.annotations, self.clip_paths, self.exists)
        return {file: corpus for file, corpus in found.items() if self.exists(file)}

    # ---- the parts

    def _readiness(self) -> dict[str, Any]:
        if not self.path.is_file():
            self.annotations  # noqa: B018  (tells why it is none)
        size = self.path.stat().st_size
        compressed = self.path.suffix == ".gz"
        with tqdm(
            total=None if compressed else size, desc=str(self.path), unit="B", unit_scale=True, mininterval=0.5
        ) as progress:
            self.readiness = count_ready(self.path, self.clip_paths, self.args.jobs, progress.update)
            progress.update((progress.total or progress.n) - progress.n)
        if not len(self.readiness.is_ready):
            raise UserError(f"annotation file {self.path} has no entries")
        report = describe_readiness(self.path, self.readiness)
        print(readiness_table(report), flush=True)
        if not report["total"]["ready"]:
            first = next(self.annotations.entries()).path
            print(f"note: nothing is ready; the first clip is {first} below {self.clip_paths.prefix}", file=sys.stderr)
        return report

    def _list_missing(self) -> str:
        target = self.args.list_missing
        seen: set[str] = set()
        folders = Folders(self.clip_paths)
        try:
            with target.open("a" if target in _lists else "w", encoding="utf-8") as file:
                for entry, is_ready in zip(self.annotations.entries(), self.readiness.is_ready.tolist(), strict=True):
                    if is_ready:
                        continue
                    for clip in (entry.path, *(entry.expand_wav or ())):
                        if clip not in seen and not folders.has_ready(clip):
                            seen.add(clip)
                            file.write(f"{clip}\n")
        except OSError as error:
            raise UserError(f"--list-missing {target}: {error}") from error
        _lists.add(target)
        print(f"{len(seen)} clips of {self.path} are not ready: {target}")
        return str(target)

    def _integrity(self) -> dict[str, Any]:
        from util.inspector.check import check_integrity, odd_files, odd_lines, passing_line, verdict_table
        from util.inspector.statistics import format_table

        looked_at, passing = check_integrity(list(self.files), self.verdicts, self.args.jobs)
        made = looked_at - len(passing)
        bad = unverified_files(self.files, self.verdicts) | passing
        odd, untold = odd_files(self.files, self.verdicts)
        rows = verdict_table(self.files, odd | bad)
        print("Ready means that the file is there. Decoded to the end, each file once:")
        print(f"{len(self.files)} clips, {made} of them decoded now; verdicts: {self.verdicts}")
        print(format_table(rows))
        if passing:
            print(passing_line(passing))
        if self.verdicts != Path(DatasetsConfig().verdicts):
            print(f"note: training finds this list by datasets.verdicts={self.verdicts}", file=sys.stderr)
        for line in odd_lines(odd, untold):
            print(line)
        for file in list(bad)[:_FAILED_SHOWN]:
            print(f"   {file}: {bad[file]}")
        if len(bad) > _FAILED_SHOWN:
            print(f'   ... {len(bad)} in all: the lines with "ok":false in {self.verdicts}')
        return {"verdicts": str(self.verdicts), "decoded": made, "unreadable_now": len(passing), "files": rows}

    def _describe(self) -> list[dict[str, Any]]:
        from util.inspector.describe import corpus_rows, describe_text

        rows = corpus_rows(self.corpora)
        print(describe_text(rows))
        return rows

    @cached_property
    def corpora(self) -> dict[str, Any]:
        """{corpus: its clips}, from verdicts or headers."""
        from util.inspector.describe import describe_corpora

        return describe_corpora(self.files, self.verdicts, self.args.jobs)

    def _statistics(self) -> dict[str, Any]:
        from util.inspector.statistics import (
            clip_values,
            duration_statistics,
            format_table,
            plot_histograms,
            text_lengths,
            text_statistics,
        )  # fmt: skip

        lengths = text_lengths(self.annotations, tokenizer=self._tokenizer())
        texts = text_statistics(lengths)
        seconds_of = {file: seconds for corpus in self.corpora.values() for file, seconds in corpus.seconds.items()}
        seconds = clip_values(self.annotations, self.clip_paths, seconds_of)
        durations = duration_statistics(seconds)
        print(format_table(texts), format_table(durations), sep="\n\n")
        if self.args.plots:
            quantities = lengths | {"seconds": seconds["task"]}
            for picture in plot_histograms(quantities, self.args.plots / self.path.stem):
                print(f"picture: {picture}")
        return {"texts": texts, "durations": durations}

    def _duplicates(self) -> dict[str, Any]:
        from util.inspector.duplicates import duplicate_report, text_report

        repeated = duplicate_report(self.annotations)
        texts = text_report(self.annotations, self._tokenizer(), self.max_txt_len, self.end_sym)
        same = repeated["same_text"]
        print(
            f"repeated (same clips, task and question): {repeated['groups']} groups, {repeated['surplus']} surplus "
            f"entries; with the same text, too: {same['groups']} groups, {same['surplus']} surplus"
        )
        for example in repeated["examples"]:
            print(f"   {example}")
        for name, found in (("empty", texts["empty"]), (f"over {self.max_txt_len} tokens", texts["too_long"])):
            print(f"texts {name}: {_text_counts(found)}")
        return {"repeated": repeated, "texts": texts}

    def _split(self) -> dict[str, int]:
        from util.inspector.split import split, told_split

        args, folder = self.args, self.args.out or self.path.parent
        counts = split(self.annotations, self.usable, args.split, args.seed, args.stratify, folder, args.force)
        print(told_split(counts, self.path, folder, args.seed))
        return counts

    def _convert(self) -> dict[str, Any]:
        from util.inspector.convert import convert

        args = self.args
        done = convert(self.annotations, self.clip_paths, args.convert, args.jobs, args.channel or "first", self.usable)
        counts = ", ".join(f"{state} {n}" for state, n in done.files.items())
        print(f"files: {counts}; {done.entries} entries in {done.annotation} (use it with prefix {args.convert})")
        for number, reason in done.left_out[:_FAILED_SHOWN]:
            print(f"   left out: entry {number}: {reason}")
        if len(done.left_out) > _FAILED_SHOWN:
            print(f"   ... {len(done.left_out)} entries left out in all")
        return {
            "annotation": str(done.annotation), "entries": done.entries, "files": dict(done.files),
            "left_out": [{"entry": number, "reason": reason} for number, reason in done.left_out],
        }  # fmt: skip

    # ---- shared by several

    @cached_property
    def usable(self) -> np.ndarray:
        """[entries] which of them are ready, not too long and, where there is a verdict file, verified."""
        usable, verdicts, limit = self.readiness.is_ready.copy(), self.verdicts, self.args.max_clip_seconds
        bad: dict[str, str] = {}
        if verdicts.exists():
            bad = unverified_files(self.files, verdicts, limit)
        elif limit:
            bad = unusable_files(list(self.files), "off", limit, partial(check_files, jobs=self.args.jobs))
        if bad:
            reasons: Counter[str] = Counter()
            for number, _, reason in entries_left_out(self.annotations, self.clip_paths, bad, self.exists):
                if usable[number]:
                    reasons[kind_of(reason)] += 1
                usable[number] = False
            for reason, n in reasons.most_common():
                print(f"   ready, but left out: {n} entries, {reason}")
        return usable

    def _tokenizer(self) -> "PreTrainedTokenizerBase | None":
        if not self.args.tokenizer:
            return None
        if not Path(self.args.tokenizer).is_dir():
            raise UserError(f"--tokenizer {self.args.tokenizer} is no folder")
        from transformers import AutoTokenizer

        from salmonn.model.model_folders import loading
        from salmonn.model.tokenizer import tokenize_as_sentencepiece

        with loading("--tokenizer", self.args.tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(
                self.args.tokenizer, local_files_only=True, trust_remote_code=False
            )
            tokenize_as_sentencepiece(tokenizer)
            return tokenizer


def _text_counts(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not counted without --tokenizer"
    tasks = ", ".join(f"{task} {n}" for task, n in found["tasks"].items())
    return f"{found['n']}" + (f" ({tasks}; e.g. entries {found['examples']})" if found["n"] else "")


_lists: set[Path] = set()  # written by this command: several annotation files share one list


def describe_readiness(path: Path, counts: Readiness) -> dict[str, Any]:
    """Rows by task and corpus, sorted, with totals per task and for the file."""
    tasks = sorted({task for task, _ in counts.total})
    keys = sorted(counts.total)
    return {
        "file": str(path),
        "corpora": [{"task": task, "corpus": corpus, **_row(counts, [(task, corpus)])} for task, corpus in keys],
        "tasks": [{"task": task, **_row(counts, [key for key in keys if key[0] == task])} for task in tasks],
        "total": _row(counts, keys),
    }


def _row(counts: Readiness, keys: list[Key]) -> dict[str, float]:
    ready, total = sum(counts.ready[key] for key in keys), sum(counts.total[key] for key in keys)
    return {"ready": ready, "not_ready": total - ready, "total": total, "ready_rate": ready / total}


def readiness_line(name: str, row: dict[str, Any]) -> str:
    """Counts and rate of one row."""
    counts = f"ready: {row['ready']}, not_ready: {row['not_ready']}, total: {row['total']}"
    return f"{name} | {counts} | ready_rate: {row['ready_rate']:.2%}"


def readiness_table(report: dict[str, Any]) -> str:
    """The lines that a person reads."""
    lines = [report["file"]]
    for task in report["tasks"]:
        corpora = [row for row in report["corpora"] if row["task"] == task["task"]]
        lines += [readiness_line(f"[{row['task']}] {row['corpus']}", row) for row in corpora]
        if len(corpora) > 1:
            lines.append(readiness_line(f"[{task['task']}] all corpora", task))
    return "\n".join([*lines, readiness_line("all tasks", report["total"]), ""])

"""The script that a GPU is for, proven where there is none; what it has measured is kept whatever happens."""

import contextlib
import json
import math
import re
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from salmonn.doctor import packages
from tests.fixtures.commands import run_command
from tests.fixtures.paths import ROOT
from tests.fixtures.waiting import HANG, wait_until
from util import gpu_check
from util.benchmarks.measure import family
from util.gpu import golden, one_rank, right
from util.gpu.rows import largest, row

MINI = ["util/gpu_check.py", "--device", "cpu", "--size", "mini", "--minutes", "300"]

# Read by Python as it starts: a part's process finds no package that the project declares and the part does not name.
BLOCK = """import json, sys
arguments = sys.orig_argv
if "--part" in arguments:
    names = json.loads(open({path!r}).read())[arguments[arguments.index("--part") + 1]]
    sys.modules.update(dict.fromkeys(names))
"""


def block_what_is_not_needed(folder: Path) -> None:
    """Write a sitecustomize.py that does so."""
    declared = [Requirement(line).name for line in packages.declared()[1]]
    imported = [packages.IMPORT_NAMES.get(name, name.replace("-", "_")) for name in declared]
    blocked = {name: [one for one in imported if one not in part.needs] for name, part in gpu_check.PARTS.items()}
    assert all(len(names) > 5 for names in blocked.values())
    (folder / "blocked.json").write_text(json.dumps(blocked), encoding="utf-8")
    (folder / "sitecustomize.py").write_text(BLOCK.format(path=str(folder / "blocked.json")), encoding="utf-8")


def report(folder: Path) -> dict:
    return json.loads((folder / "gpu_check.json").read_text(encoding="utf-8"))


def test_the_whole_script_runs_on_a_cpu_each_part_with_no_more_packages_than_it_names(tmp_path):
    """All parts but one that differs from another by its quantisation (`test_benchmark.py` steps through both).

    The results lie where the user stands, and the command can be typed again.
    """
    here = tmp_path / "a folder"
    here.mkdir()
    block_what_is_not_needed(tmp_path)
    nf4, eight = gpu_check.PARTS["fast-nf4"], gpu_check.PARTS["fast-8bit"]
    assert nf4 == eight._replace(arguments=("nf4",))
    wanted = [name for name in gpu_check.PARTS if name != "fast-nf4"]
    command = [str(ROOT / MINI[0]), *MINI[1:], "--out", "my results", "--parts", *wanted]
    result = run_command(*command, cwd=here, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    said = report(here / "my results")
    assert shlex.split(said["command"])[2:] == command[1:]
    parts = said["parts"]
    assert list(parts) == wanted
    ended = {name: part["ended"] for name, part in parts.items()}
    assert ended.pop("compile").startswith("skipped on a CPU")
    assert set(ended.values()) == {"done"}, ended
    for name in ended:
        assert parts[name]["rows"], name
    with_bars = [line for part in parts.values() for line in part["rows"] if "bar" in line]
    assert len(with_bars) > 20
    assert all(line["ok"] for line in with_bars)
    table = (here / "my results/gpu_check.md").read_text(encoding="utf-8")
    assert f"| right | {with_bars[0]['what']} |" in table
    assert table.strip() in result.stdout
    assert all(f"| {name} | done, " in table for name in ended)
    assert re.search(r", [1-9]\d* s of 18000\n", table)


def test_a_check_that_is_ended_keeps_what_it_has_and_leaves_no_process(tmp_path):
    """Of all parts, where none are named, the first is ended."""
    command = [sys.executable, *MINI, "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = next(iter(gpu_check.PARTS))
    wait_until(lambda: (tmp_path / "gpu_check.json").exists() and report(tmp_path)["parts"][first]["rows"], process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG)
    assert process.returncode == 1
    parts = report(tmp_path)["parts"]
    assert list(parts)[:2] in ([first], [first, "right"])  # which ends fast
    assert parts[first]["rows"][0]["what"] == "python, torch, CUDA, transformers"
    assert commands_with(str(tmp_path)) == []


def test_a_part_ends_with_the_script_that_was_killed(tmp_path):
    start = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"
    part = [sys.executable, str(ROOT / MINI[0]), *MINI[1:5], "--out", str(tmp_path), "--part", "environment"]
    script = subprocess.Popen([sys.executable, "-c", start, *part], stdin=subprocess.PIPE)  # open: the part waits
    wait_until(lambda: loads_torch(family(script.pid)[1:]), script)
    script.kill()
    wait_until(lambda: commands_with(str(tmp_path)) == [])
    script.communicate()


def loads_torch(pids: list[int]) -> bool:
    return any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids)


def commands_with(word: str) -> list[bytes]:
    """Command lines of processes that run and hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(path.read_bytes())
    return [command for command in found if word.encode() in command]


def part_of(tmp_path: Path, code: str, seconds: float, ready: str = "right.jsonl") -> dict:
    """How a part ends whose process is this code; its time begins once a file is there, however slow the machine."""
    arguments = Namespace(out=tmp_path, device="cpu", size="mini")
    path = gpu_check.rows_file(tmp_path, "right")
    script = f"import json, sys, time; rows = open({str(path)!r}, 'a')\n{code}"
    with path.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    wait_until(lambda: (tmp_path / ready).exists() and (tmp_path / ready).read_bytes(), process)
    return list(gpu_check.finish("right", process, seconds, arguments))[-1]


ONE_ROW = "rows.write(json.dumps({'what': 'a', 'value': 1.5, 'unit': 's'}) + '\\n'); rows.flush()\n"


def test_a_part_that_fails_keeps_its_rows_and_says_why(tmp_path):
    result = part_of(tmp_path, ONE_ROW + "raise RuntimeError('no such kernel')", seconds=HANG)
    assert result["rows"] == [{"what": "a", "value": 1.5, "unit": "s"}]
    assert result["ended"].startswith("failed: RuntimeError: no such kernel")


def test_a_part_that_takes_too_long_is_stopped_and_keeps_its_whole_rows(tmp_path):
    code = ONE_ROW + 'rows.write(\'{"what": "half a l\'); rows.flush(); time.sleep(3600)'
    result = part_of(tmp_path, code, seconds=0.5)
    assert result["ended"] == "stopped at its limit of 0 s"
    assert [line["what"] for line in result["rows"]] == ["a"]


def test_what_a_stopped_part_has_started_is_told_to_end(tmp_path):
    told = tmp_path / "told"
    child = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit(open({str(told)!r}, 'w').close())); "
    child += f"open({str(tmp_path / 'ready')!r}, 'w').write('yes'); time.sleep(3600)"
    code = f"import subprocess\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(3600)"
    part_of(tmp_path, code, seconds=0.1, ready="ready")
    assert told.exists()
    assert commands_with(str(told)) == []


def test_a_part_whose_packages_are_missing_is_told_and_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    assert gpu_check.skipped("fast-8bit", "cuda") == "skipped: bitsandbytes not installed"
    assert gpu_check.skipped("fast-bfloat16", "cuda") == ""
    arguments = Namespace(out=tmp_path, device="cuda", size="full")
    assert gpu_check.start("fast-nf4", arguments) is None
    assert next(gpu_check.finish("fast-nf4", None, 1.0, arguments))["ended"].startswith("skipped: bitsandbytes")


@pytest.mark.parametrize("package", ["no_such_package", "no_such_package.inside", "google.no_such_package"])
def test_a_package_is_missing_also_inside_one_that_is(monkeypatch, package):
    assert gpu_check.is_there("google.protobuf")
    part = gpu_check.PARTS["right"]._replace(needs=("torch", package))
    monkeypatch.setitem(gpu_check.PARTS, "right", part)
    assert gpu_check.skipped("right", "cuda") == f"skipped: {package} not installed"


def test_int8_is_held_against_bitsandbytes_8_bits_step_by_step():
    def rows(how: str, speeds: tuple[float | str, ...], memory: float) -> list[dict]:
        steps = ("ours, batch 16", "ours, LLM recomputed, batch 32", "plain published, batch 8")
        lines = [row("products of large matrices in bfloat16", 700.0, "TFLOP/s")]
        for step, speed in zip(steps, speeds, strict=True):
            unit = "" if isinstance(speed, str) else "samples/s"
            lines += [row(f"13b, {how} LLM, bfloat16, 10 s, {step}", speed, unit)]
            lines += [row("   peak memory, allocated", memory, "GB")] if unit else []
        return lines

    parts = {f"fast-{how}": {"rows": rows(how, *of)} for how, of in
             {"8bit": ((10.0, 5.0, 4.0), 20.0), "int8": ((14.0, "out of memory", 8.0), 19.0)}.items()}  # fmt: skip
    speed, memory = gpu_check.against_8bit(parts, "full")
    assert speed["what"].endswith("13b, bfloat16, 10 s, ours, batch 16: samples/s")
    assert (speed["value"], speed["bar"], speed["ok"]) == (pytest.approx(1.4), "1.5 x", False)
    assert memory["value"] == pytest.approx(0.95)
    assert "bar" not in memory
    assert all("bar" not in line for line in gpu_check.against_8bit(parts, "mini"))
    assert gpu_check.against_8bit({"fast-int8": parts["fast-int8"]}, "full") == []


def test_the_parts_that_no_card_has_told_yet_come_before_those_that_one_has():
    names = list(gpu_check.PARTS)
    assert names[:4] == ["environment", "right", "fast-8bit", "fast-int8"]
    assert names.index("tokens") < names.index("waits")


@pytest.mark.parametrize("minutes", [0.6, 1, 3, 5.8, 8, 30])
@pytest.mark.parametrize("used", [0.0, 0.3, 1.0])
def test_all_parts_end_inside_the_minutes_however_long_each_takes_to_end(minutes, used):
    """Whatever share of its limit a part uses, and if each has to be waited for until it is killed."""
    names, left = list(gpu_check.PARTS), 60.0 * minutes
    limits = []
    for i in range(len(names)):
        limits.append(gpu_check.limit(names[i:], left))
        if limits[-1]:  # else it is not begun
            left -= used * limits[-1] + gpu_check.TO_END
        assert left > -1e-6
    assert limits[0] > 0
    assert sum(limits[1:]) > 0 or minutes <= 1.6


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path):
    result = part_of(tmp_path, ONE_ROW + "sys.stdin.readline(); time.sleep(3600)", seconds=0.0)
    assert result["ended"] == "not begun: no time was left"
    assert commands_with(str(tmp_path)) == []


def test_what_fails_on_a_cpu_is_not_taken_for_what_is_skipped_there(monkeypatch, tmp_path):
    result = {"ended": "failed: no kernel on a CPU (waits.log)", "seconds": 1.0, "rows": []}
    monkeypatch.setattr(gpu_check, "start", lambda *_: None)
    monkeypatch.setattr(gpu_check, "finish", lambda *_: iter([result]))
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", [*MINI, "--out", str(tmp_path), "--parts", "waits"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 1


def test_a_bar_that_is_not_met_is_seen():
    missed, met = row("a", 1.0, "x", "2 x", False), row("b", 3.0, "x", "2 x", True)
    assert gpu_check.text_line(missed).endswith("1 x  NOT MET: 2 x")
    assert gpu_check.text_line(met).endswith("3 x  ok: 2 x")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cpu"], "--device cpu needs --size mini"),
        (["--minutes", "nan"], "nan: a number, more than 0"),
        (["--minutes", "0.5"], "--minutes must be more than 0.5"),
        (["--parts", "swift"], "invalid choice: 'swift'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options, says):
    result = run_command("util/gpu_check.py", *options)
    assert result.returncode == 2
    assert says in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_goes_without(tmp_path):
    result = run_command("util/gpu_check.py", "--out", str(tmp_path))
    assert result.returncode == 2
    assert "PyTorch finds no GPU here; --device cpu --size mini goes without" in result.stderr


def test_a_wrong_number_is_not_called_right():
    case = golden.load_golden("no_beats")
    with torch.no_grad():
        case.model.speech_llama_proj.bias.add_(0.01)
    rows = {line["what"].partition(": ")[2]: line for line in right._golden_rows("no_beats", case, tf32=False)}
    assert rows["log-mel"]["ok"]
    assert rows["Whisper"]["ok"]
    assert not rows["audio tokens"]["ok"]
    assert not rows["logits"]["ok"]


@pytest.mark.parametrize(
    ("spoilt", "what"),
    [
        ("s0_speech_embeds", "audio tokens"),
        ("s1_speech_embeds", "audio tokens"),
        ("s1_loss_nopad", "loss"),
        ("s0_grad_norm_nopad", "gradient norms, by their tolerance"),
    ],
)
def test_a_number_that_is_none_is_not_called_right(spoilt, what):
    case = golden.load_golden("no_beats")
    case.expected = dict(case.expected)
    case.expected[spoilt] = np.full_like(case.expected[spoilt], math.nan)
    rows = {line["what"].partition(": ")[2]: line for line in right._golden_rows("no_beats", case, tf32=False)}
    assert math.isnan(rows[what]["value"])
    assert not rows[what]["ok"]
    assert rows["log-mel"]["ok"]


@pytest.mark.parametrize("differences", [[0.1, math.nan, 0.2], [math.nan, 0.1], [0.1, math.nan]])
def test_the_largest_difference_is_none_where_one_is(differences):
    assert math.isnan(largest(differences))
    one = {f"p{i}": torch.zeros(2) for i in range(len(differences))}
    other = {f"p{i}": torch.tensor([0.0, value]) for i, value in enumerate(differences)}
    difference, where = one_rank.largest_difference(one, other)
    assert math.isnan(difference)
    assert where == f"(p{[math.isnan(value) for value in differences].index(True)})"


def test_a_loss_that_is_none_is_another_loss():
    [apart, _] = one_rank._loss_rows(steps(1.0, 2.0, 3.0), steps(1.0, math.nan, 3.0))
    assert not apart["ok"]


def steps(*losses: float, first: int = 1, speed: float = 5.0) -> list[dict]:
    return [{"step": first + i, "loss": loss, "samples_per_second": speed} for i, loss in enumerate(losses)]


WHOLE = steps(5.0, 4.0, 3.0, 2.0)


@pytest.mark.parametrize(
    ("gone_on", "first", "other"),
    [
        (WHOLE[:2] + steps(3.0, 2.0, first=3, speed=9.0), 3, "none"),
        (steps(5.0, 4.0, 3.0, 2.0, speed=9.0), 1, "none"),  # anew: as right, and took all steps itself
        (WHOLE[:2] + steps(3.5, 2.5, first=3, speed=9.0), 3, 3),
        (WHOLE[:2] + steps(3.0, first=3, speed=9.0), 3, 4),
        (WHOLE[:2] + steps(2.0, first=4, speed=9.0), 4, 3),  # a step left out
        (WHOLE[:2], "none", 3),
    ],
)
def test_a_run_that_goes_on_is_told_from_one_that_begins_anew(gone_on, first, other):
    stopped, begins, differs = one_rank.resume_rows(WHOLE, WHOLE[:2], gone_on)
    assert stopped["value"] == 2
    assert stopped["ok"]
    assert (begins["value"], begins["ok"]) == (first, first == 3)
    assert (differs["value"], differs["ok"]) == (other, other == "none")

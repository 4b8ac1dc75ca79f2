"""Teachers as rows, the share of the gap, tables that keep their rows, and progress."""

import io
import json
import sys

import pytest

from d2kd.tools import runs
from d2kd.tools.compare import command, results, statistics
from d2kd.tools.compare.describe import Description
from d2kd.tools.compare.report import Report
from d2kd.tools.compare.statistics import Gap
from d2kd.tools.compare.table import table
from d2kd.tools.runs import Run
from d2kd.tools.watch import Watch
from tests.tools.tables import calls, cells, metrics, run_main

GAP = {"FGD": Gap("alone", "teacher")}


def names(root) -> list[str]:
    text = (root / "out/results.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


# ---- the share of the gap


def test_share_of_the_gap_by_hand():
    # Seed 1: of 40 - 10 = 30 AP, 15 are closed; seed 2: of 40 - 20 = 20 AP, 5: 50 % and 25 %.
    found = {
        "alone": {1: metrics(10.0), 2: metrics(20.0)},
        "FGD": {1: metrics(25.0), 2: metrics(25.0)},
        "teacher": {None: metrics(40.0)},
    }
    text = table(found, {"FGD": "alone"}, [1, 2], gaps=GAP)
    # Their mean is 37.5, their standard deviation 25 / sqrt(2) = 17.7.
    assert cells(text, "FGD")["gap closed, %"] == "37.5 ± 17.7"
    assert cells(text, "alone")["gap closed, %"] == cells(text, "teacher")["gap closed, %"] == ""
    assert cells(text, "teacher")["AP"] == "40.0"
    legend = " ".join(text.split())
    assert "Evaluated once, not trained here: teacher." in legend
    assert "the student alone is alone" in legend and "Warning" not in legend


def test_a_teacher_that_was_trained_is_taken_seed_by_seed():
    # (15 - 10) / (30 - 10) and (30 - 20) / (40 - 20): 25 % and 50 %.
    found = {
        "alone": {1: metrics(10.0), 2: metrics(20.0)},
        "FGD": {2: metrics(30.0), 1: metrics(15.0)},
        "teacher": {1: metrics(30.0), 2: metrics(40.0)},
    }
    assert sorted(statistics.gap_shares(found, "FGD", GAP["FGD"])) == [0.25, 0.5]


def test_worse_than_alone_and_better_than_the_teacher():
    assert statistics.share_of_gap(40.0, 20.0, 10.0) == -0.5
    assert statistics.share_of_gap(40.0, 20.0, 50.0) == 1.5


@pytest.mark.parametrize("alone", [40.0, 41.0])
def test_no_share_where_there_is_no_gap(alone):
    found = {"alone": {1: metrics(alone)}, "FGD": {1: metrics(42.0)}}
    found["teacher"] = {None: metrics(40.0)}
    (warning,) = statistics.reached(found, GAP)
    text = table(found, {"FGD": "alone"}, [1], gaps=GAP, warnings=[warning])
    assert cells(text, "FGD")["gap closed, %"] == "no gap"
    legend = " ".join(text.split())
    assert "with at least one seed the student alone is as good as its teacher" in legend
    assert f"'alone' reaches its teacher 'teacher' without distillation ({alone:.1f}" in warning
    assert f"Warning: {warning}" in legend


def test_the_warning_counts_the_seeds():
    found = {"alone": {1: metrics(30.0), 2: metrics(50.0)}, "FGD": {}}
    found["teacher"] = {None: metrics(45.0)}
    (warning,) = statistics.reached(found, GAP)
    assert "with 1 of 2 seeds (40.0 AP, teacher 45.0)" in warning


# ---- teachers as rows


def test_the_teacher_of_a_distiller_is_evaluated_once_and_is_a_row(root, capsys):
    args = ["alone: c.py", "FGD: d.py scale=2", "FGD 2 (vs FGD): d.py scale=3", "--seeds", "1", "2"]
    assert run_main(root, *args) == 0
    evaluations = [c for c in calls(root) if c["mode"] == "--eval-teacher"]
    assert len(evaluations) == 1 and calls(root)[0]["mode"] == "--eval-teacher"
    text = (root / "out/results.md").read_text()
    assert names(root) == ["alone", "FGD", "FGD 2", "teacher"]
    # Seed 1: (21 - 11) / (40 - 11) = 34.5 %; seed 2: (22 - 12) / (40 - 12) = 35.7 %.
    assert cells(text, "FGD")["gap closed, %"] == "35.1 ± 0.9"
    # FGD 2 is compared with FGD, which is distilled too; the student alone is "alone".
    # Seed 1: (31 - 11) / 29 = 69.0 %; seed 2: (32 - 12) / 28 = 71.4 %.
    assert cells(text, "FGD 2")["gap closed, %"] == "70.2 ± 1.7"
    assert cells(text, "teacher")["AP"] == "40.0" and cells(text, "teacher")["s/iter"] == ""
    assert cells(text, "teacher")["AP difference"] == ""
    run_main(root, *args)
    assert len(calls(root)) == 7  # nothing twice
    printed = capsys.readouterr().out  # of both calls
    assert printed.count("whether 'alone' has converged was not checked") == 2


def test_no_teacher_where_none_is_asked_for_or_none_is_there(root):
    run_main(root, "alone: c.py", "FGD: d.py", "--seeds", "1", "--no-teacher")
    assert {c["mode"] for c in calls(root)} == {""} and names(root) == ["alone", "FGD"]
    assert "gap closed" not in (root / "out/results.md").read_text()


def test_two_teachers_are_two_rows(root):
    (root / "e.py").touch()
    run_main(root, "alone: c.py", "d: d.py scale=2", "e: e.py scale=2", "--seeds", "1")
    assert names(root) == ["alone", "d", "e", "teacher", "teacher of e"]
    text = (root / "out/results.md").read_text()
    assert cells(text, "e")["gap closed, %"] == "34.5 to teacher of e"
    # A later call with the second one only finds its evaluation again.
    before = len(calls(root))
    run_main(root, "e: e.py scale=2", "--seeds", "1")
    assert len(calls(root)) == before and len(names(root)) == 5


def test_an_entry_may_be_the_teacher(root):
    teacher = "big (teacher): c.py train.init_checkpoint=big.pth ap=30.0"
    run_main(root, teacher, "alone: c.py", "FGD: d.py scale=2", "--seeds", "1")
    modes = [(c["mode"], c.get("train.init_checkpoint")) for c in calls(root)]
    assert modes == [("--eval-only", "big.pth"), ("", None), ("", None)]
    text = (root / "out/results.md").read_text()
    # (21 - 11) / (30 - 11); rows are compared with the first one that is no teacher.
    assert cells(text, "FGD")["gap closed, %"] == "52.6"
    assert cells(text, "FGD")["AP - alone"] == "+10.0" and cells(text, "big")["AP - alone"] == ""


def test_a_teacher_without_weights_is_trained_as_the_others_are(root):
    run_main(root, "alone: c.py", "T (teacher): c.py scale=3", "FGD: d.py scale=2", "--seeds", "1")
    assert [c["mode"] for c in calls(root)] == [""] * 3
    # (21 - 11) / (31 - 11)
    text = (root / "out/results.md").read_text()
    assert cells(text, "FGD")["gap closed, %"] == "50.0"


def test_a_student_that_reaches_its_teacher_is_warned_of(root, capsys):
    run_main(root, "alone: c.py scale=5", "FGD: d.py scale=6", "--seeds", "1")
    printed = capsys.readouterr()
    assert printed.out.count("Warning: 'alone' reaches its teacher 'teacher'") == 1
    assert "Warning" not in printed.err
    assert "Warning: 'alone' reaches its teacher" in (root / "out/results.md").read_text()


def test_a_row_of_another_kind_may_be_called_teacher(root):
    run_main(root, "teacher: c.py", "FGD: d.py scale=2", "--seeds", "1")
    assert names(root) == ["teacher", "FGD", "teacher of FGD"]


# ---- tables keep their rows


def test_fewer_entries_or_seeds_keep_the_rows_that_are_there(root):
    run_main(root, "a: c.py", "b: c.py scale=2", "c: d.py scale=3", "--seeds", "1", "2")
    full = (root / "out/results.md").read_text(), (root / "out/results.csv").read_text()
    before = len(calls(root))
    for args in (["b: c.py scale=2", "--seeds", "1"], ["c: d.py scale=3", "--seeds", "2"]):
        assert run_main(root, *args) == 0
        assert full == tuple((root / f"out/results.{x}").read_text() for x in ("md", "csv"))
    assert len(calls(root)) == before
    run_main(root, "new: c.py scale=4", "--seeds", "3")
    assert names(root) == [
        *("a (2 of 3 seeds)", "b (2 of 3 seeds)", "c (2 of 3 seeds)", "teacher"),
        "new (1 of 3 seeds)",
    ]
    text = (root / "out/results.md").read_text()
    assert cells(text, "b (2 of 3 seeds)")["AP - a"] == "+10.0"
    assert cells(text, "c (2 of 3 seeds)")["gap closed, %"] == "70.2 ± 1.7"


def test_a_table_without_its_runs_keeps_its_figures(root):
    import shutil

    run_main(root, "a: c.py", "b: c.py scale=2", "--seeds", "1")
    shutil.rmtree(root / "out/a")
    run_main(root, "b: c.py scale=2", "--seeds", "1")
    assert cells((root / "out/results.md").read_text(), "a")["AP"] == "11.0"


def test_a_table_can_be_replaced(root):
    run_main(root, "a: c.py", "b: c.py scale=2", "--seeds", "1", "2")
    run_main(root, "b: c.py scale=2", "--seeds", "1", "--replace")
    assert names(root) == ["b"]


def test_a_row_with_other_settings_is_refused_also_without_its_folder(root):
    import shutil

    run_main(root, "a: c.py", "--seeds", "1")
    shutil.rmtree(root / "out/a")
    with pytest.raises(ValueError, match=r"expected row 'a' to be c\.py x=1, found c\.py.*--repl"):
        run_main(root, "a: c.py x=1", "--seeds", "1")
    assert run_main(root, "a: c.py x=1", "--seeds", "1", "--replace") == 0


def test_a_run_of_another_seed_must_have_the_same_settings(root):
    run_main(root, "a: c.py", "--seeds", "1")
    (root / "c.py").write_text("changed = True")
    with pytest.raises(ValueError, match=r"as it is now, found one from before"):
        run_main(root, "a: c.py", "--seeds", "2")
    assert len(calls(root)) == 1


def test_results_of_an_early_version_are_read(root):
    run_main(root, "a: c.py", "b: c.py scale=2", "--seeds", "1")
    path = root / "out/results.csv"
    lines = [line.rsplit(",", 3)[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert results.read_lines(path)[1].teacher is None
    run_main(root, "b: c.py scale=2", "--seeds", "1")
    assert names(root) == ["a", "b"]
    assert cells((root / "out/results.md").read_text(), "b")["AP - a"] == "+10.0"


@pytest.fixture
def page(root):
    path = root / "page.md"
    path.write_text("<!-- compare: t -->\n<!-- /compare -->\n")
    return path


def test_a_document_keeps_the_larger_table(root, page):
    into = ["--into", f"{page}#t"]
    run_main(root, "a: c.py", "b: d.py scale=2", "--seeds", "1", "2", *into)
    text = page.read_text()
    assert results.table_size(text) == 6  # two rows and the teacher, two seeds
    args = ["a: c.py", "--output", str(root / "other"), "--devices", "cpu", *into]
    before = len(calls(root))
    with pytest.raises(ValueError, match=r"at least the 6 runs that are there, found 3\. .*--repl"):
        command.main([*args, "--seeds", "1", "2", "3"])
    assert page.read_text() == text and len(calls(root)) == before
    command.main([*args, "--seeds", "1", "--replace"])
    assert results.table_size(page.read_text()) == 1


def test_a_document_keeps_a_table_with_more_finished_runs(root, page, capsys):
    run_main(root, "a: c.py", "--seeds", "1", "2", "--into", f"{page}#t")
    text = page.read_text()
    args = ["a: c.py fail=2", "--seeds", "1", "2", "--into", f"{page}#t", "--devices", "cpu"]
    with pytest.raises(ValueError, match="at least the 2 runs that are there, found 1"):
        command.main([*args, "--output", str(root / "other")])
    assert page.read_text() == text
    assert "it went wrong" in capsys.readouterr().err


def test_the_command_below_a_table_makes_all_of_it(root, page):
    run_main(root, "a: c.py", "b (vs a): d.py 'x=[1, 2]'", "--seeds", "1", "2")
    run_main(root, "c: c.py", "--seeds", "1", "--into", f"{page}#t")
    block = page.read_text().split("    d2kd compare ")[1]
    assert "'a: c.py'" in block and "'c: c.py'" in block and "--seeds 1 2 " in block
    assert """'b (vs a): d.py '"'"'x=[1, 2]'"'"''""" in block and "teacher" not in block


# ---- progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def watch_of(run: Run, clock: Clock) -> Watch:
    run.folder.mkdir(parents=True)
    return Watch(run.folder, runs.OUTPUT, run.max_iter, clock=clock)


def step(run: Run, watch: Watch, clock: Clock, iterations: int, seconds: float) -> None:
    for _ in range(iterations):
        clock.now += seconds
        with open(run.folder / "metrics.json", "a") as file:
            file.write(json.dumps({"iteration": watch.done, "total_loss": 0.5}) + "\n")
        watch.poll()


def make_run(tmp_path, name: str, max_iter: int | None = 100, **fields) -> Run:
    return Run(title=name, folder=tmp_path / name, config="c.py", max_iter=max_iter, **fields)


def test_a_run_is_watched_by_its_metrics(tmp_path):
    run, clock = make_run(tmp_path, "a"), Clock()
    run.folder.mkdir()
    old = {"iteration": 50, "total_loss": 9.0}
    (run.folder / "metrics.json").write_text(json.dumps(old) + "\n")  # of an interrupted start
    watch = Watch(run.folder, runs.OUTPUT, 100, clock=clock)
    watch.poll()
    assert watch.done == 0 and watch.words() == "starting"
    (run.folder / runs.OUTPUT).write_text("a\nWARNING: b\nhalf a WAR")
    step(run, watch, clock, 1, 5.0)
    assert watch.warnings == ["WARNING: b"]
    step(run, watch, clock, 10, 5.0)
    assert watch.done == 11 and watch.words() == "loss 0.500  ETA 7:25"  # 89 steps of 5 s
    with open(run.folder / "metrics.json", "a") as file:
        file.write('{"iteration": 11, "bbox/AP": 12.34}\n{"bbox/AP": NaN}\n{"iterat')
    watch.poll()
    assert watch.words() == "loss 0.500  AP 12.3  ETA 7:25"
    clock.now += 130
    assert watch.words() == "loss 0.500  AP 12.3  no step for 2:10"


def test_the_first_eta_is_the_runs_own(tmp_path):
    run, clock = make_run(tmp_path, "a"), Clock()
    watch = watch_of(run, clock)
    line = {"iteration": 19, "total_loss": 0.5, "eta_seconds": 160.0}
    (run.folder / "metrics.json").write_text(json.dumps(line) + "\n")
    watch.poll()
    assert watch.words() == "loss 0.500  ETA 2:40"


def test_the_eta_of_the_whole_table_by_hand(tmp_path):
    # Two runs at a time, one second and three seconds a step: 4/3 steps in a second. Of three runs
    # of 100 steps, 10 are done: 290 / (4/3) = 217.5 s.
    every, clock = [make_run(tmp_path, name) for name in "abc"], Clock()
    report = Report(every, at_a_time=2, stream=(file := io.StringIO()))
    watches = {run: watch_of(run, clock) for run in every[:2]}
    assert report.eta(watches) is None
    step(every[0], watches[every[0]], clock, 5, 1.0)
    step(every[1], watches[every[1]], clock, 5, 3.0)
    # The first one's next report is late by now; its rate must be its own.
    watches[every[0]].rate.clock = lambda: 105.0
    assert report.eta(watches) == pytest.approx(217.5)
    report.watch(watches)
    assert file.getvalue() == (
        "0/3 runs | a 5/100 loss 0.500  ETA 1:35 | b 5/100 loss 0.500  ETA 4:45 | all: ETA 3:37\n"
    )
    # One ends. The other trains alone for a moment: the two places are still both used.
    report.ended(every[0], "12.0 AP")
    assert file.getvalue().endswith("a: 12.0 AP\n")
    del watches[every[0]]
    assert report.eta(watches) == pytest.approx(195 * 3.0 / 2)


def test_evaluations_and_unknown_lengths(tmp_path):
    clock = Clock()
    run = make_run(tmp_path, "teacher", None, mode="--eval-teacher")
    report = Report([run], 1, io.StringIO())
    watch = Watch(run.folder, runs.OUTPUT, None, trains=False, clock=clock)
    assert watch.words() == "evaluating"
    report.watch({run: watch})
    assert report.line.stream.getvalue() == "0/1 runs | teacher evaluating\n"
    run = make_run(tmp_path, "b", None)
    watch = watch_of(run, clock)
    step(run, watch, clock, 3, 2.0)
    assert watch.words() == "loss 0.500  2 s a step"
    assert Report([run], 1, io.StringIO()).eta({run: watch}) is None


def test_progress_is_printed_to_a_file_while_runs_train(root, capsys):
    run_main(root, "a: c.py sleep=1", "--seeds", "1")
    printed = capsys.readouterr().out
    assert "0/1 runs | a, seed 1 0/3 starting" in printed and "\x1b" not in printed


# ---- the output of a run


def test_a_run_has_no_terminal_and_its_output_no_colors(root):
    # FORCE_COLOR stands for a shell that asks for colors everywhere.
    (root / "train_net.py").write_text(
        "import logging, os, sys\n"
        "from detectron2.utils.logger import setup_logger\n"
        "log = setup_logger(name='d2kd')\n"
        "log.info('seen'); log.warning('warned'); log.error('wrong')\n"
        "from termcolor import colored\n"
        "print(colored('a table', 'cyan'), sys.stdin.read())\n"
        "sys.exit(any(os.isatty(n) for n in (0, 1, 2)))\n"
    )
    run = Run(title="a", folder=root / "a", config="c.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setattr(runs, "TRAIN", (sys.executable, str(root / "train_net.py")))
        process = run.start("cpu")
    assert process.wait() == 0
    text = run.output.read_text()
    assert "seen" in text and "warned" in text and "a table" in text and "\x1b" not in text


def test_a_distiller_is_described_with_its_teacher():
    from d2kd.tools.compare.describe import describe
    from d2kd.tools.compare.entries import Entry

    configs = [
        "configs/demo/student.py",
        "configs/demo/distill.py",
        "configs/demo/distill_mimic.py",
    ]
    entries = [Entry("a", config, ("train.max_iter=7{seed}",)) for config in configs]
    entries += [Entry("b", "configs/demo/student.py", ("no.such.field=1",))]
    alone, fgd, mimic, broken = describe(entries, 2)
    assert (alone.max_iter, alone.teacher) == (72, "")
    assert fgd.max_iter == 72 and len(fgd.teacher) == 64 and fgd.teacher == mimic.teacher
    assert broken[:2] == (None, "") and "override no.such.field: expected" in broken.problem


def test_a_file_that_a_row_lacks_is_named_unless_an_earlier_row_makes_it(tmp_path):
    from d2kd.tools.compare.describe import describe
    from d2kd.tools.compare.entries import Entry
    from d2kd.tools.compare.run import make_runs

    def entry(name: str, weights: str) -> Entry:
        overrides = (f"train.init_checkpoint={tmp_path}/{weights}",)
        return Entry(name, "configs/demo/student.py", overrides)

    weights = "{}/seed{{seed}}/model_final.pth"
    entries = [
        entry("early", weights.format("late")),
        Entry("first", "configs/demo/student.py"),
        entry("second", weights.format("first")),
        entry("late", "gone.pth"),
    ]
    todo = [run for seed in (1, 2) for e in entries for run in make_runs(e, [seed], tmp_path)]
    early, first, second, late = (d.problem for d in describe(entries, 1, todo))
    assert not first and not second
    assert early.startswith("train.init_checkpoint: expected a file or a URL, found no file at")
    assert f"'{tmp_path}/late/seed1/model_final.pth'" in early
    assert f"'{tmp_path}/gone.pth'" in late


def test_files_are_checked_in_the_order_of_the_runs_that_are_left(root, monkeypatch):
    asked = []

    def describe(entries, seed, todo):
        asked.append([run.title for run in todo])
        return [Description(3)] * len(entries)

    monkeypatch.setattr(command, "describe", describe)
    run_main(root, "a: c.py", "--seeds", "1")
    rows = ["a: c.py", "b: c.py x=1", "T (teacher): c.py train.init_checkpoint=t.pth"]
    run_main(root, *rows, "--seeds", "1", "2")
    assert asked[1] == ["T", "b, seed 1", "a, seed 2", "b, seed 2"]


def test_the_tool_imports_no_torch():
    import subprocess

    code = "import sys, d2kd.tools.compare; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_help_ends_with_two_examples(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    last = capsys.readouterr().out.split("examples:\n")[1]
    assert end.value.code == 0 and last.count("  d2kd compare ") == 2

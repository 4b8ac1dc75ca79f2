import csv
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from scipy.stats import ttest_rel

from d2kd import threads
from d2kd.tools import paths
from d2kd.tools.compare import entries, statistics
from d2kd.tools.compare.describe import describe
from d2kd.tools.compare.entries import Entry
from d2kd.tools.compare.run import EntryRun
from d2kd.tools.compare.table import table
from tests import toys
from tests.tools.tables import calls, cells, metrics, run_main

ROOT = Path(__file__).parents[2]


def tool(root, *args: str) -> list[str]:
    """The command in a process of its own."""
    code = f"""
import sys
from d2kd.commands import call
from d2kd.tools import runs
from d2kd.tools.compare import command, main
from d2kd.tools.compare.describe import Description
runs.TRAIN = (sys.executable, {str(root / "train_net.py")!r})
command.describe = lambda entries, seed, todo: [Description()] * len(entries)
sys.exit(call("d2kd compare", main))
"""
    return [sys.executable, "-c", code, *args, "--output", str(root / "out"), "--devices", "cpu"]


def one_run(folder: Path, **fields) -> EntryRun:
    values = dict(title="a, seed 3", folder=folder / "a/seed3", config="c.py", seed=3)
    values |= dict(overrides=("x=1", "train.seed=3"), entry=Entry("a", "c.py", ("x=1",)))
    return EntryRun(**{**values, **fields})


def finish(run, *lines: dict) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (run.folder / "model_final.pth").touch()


def test_entries_have_a_name_a_config_and_overrides():
    entry = entries.parse_entry("PGD x 2: configs/demo/distill.py a.b=2 'c=[1, 2]'")
    assert entry[:3] == ("PGD x 2", "configs/demo/distill.py", ("a.b=2", "c=[1, 2]"))
    assert entries.parse_entry("configs/demo/student.py").name == "student"
    with pytest.raises(ValueError, match=r"found no file 'configs/nothing.py' in"):
        entries.parse_entry("a: configs/nothing.py")


@pytest.mark.parametrize("rest", ["c.py 'x", "c.py x\\"])
def test_an_entry_with_an_open_quotation_mark_is_named(root, rest):
    with pytest.raises(ValueError, match=r"a: c\.py .*expected closed quotation marks, found: No"):
        entries.parse_entry(f"a: {rest}")


def test_an_entry_may_be_compared_with_another_than_the_rest(root):
    texts = ["alone: c.py", "FGD: c.py", "FGD + UET (vs FGD): c.py"]
    rows = entries.read_entries(texts, None)
    assert [e.name for e in rows] == ["alone", "FGD", "FGD + UET"]
    assert entries.choose_bases(rows, None) == {"FGD": "alone", "FGD + UET": "FGD"}
    assert entries.choose_bases(rows, "FGD") == {"alone": "FGD", "FGD + UET": "FGD"}
    with pytest.raises(ValueError, match=r"expected one of \['alone', 'b'\], found 'FGD'"):
        entries.choose_bases(entries.read_entries(["alone: c.py", "b (vs FGD): c.py"], None), None)


def test_a_file_gives_further_entries(root):
    file = root / "experiments.txt"
    file.write_text("# of the paper\n\nb: c.py x=1\n  d: c.py 'y=#'\n")
    rows = entries.read_entries(["a: c.py"], file)
    assert [(e.name, e.overrides) for e in rows] == [("a", ()), ("b", ("x=1",)), ("d", ("y=#",))]


def test_a_teacher_has_the_same_digest_in_each_process_and_another_with_other_data():
    first = [Entry("a", "demo/distill_continued.py", ())]
    other = Entry("b", "demo/distill_continued.py", ("dataloader.test.dataset.names=demo_fog_val",))
    (found,), (again, on_fog) = describe(first, 1), describe([*first, other], 1)
    assert found.teacher == again.teacher != on_fog.teacher
    assert found.teacher and on_fog.teacher


def test_entries_that_would_share_a_folder_are_refused(root):
    with pytest.raises(ValueError, match="a different name for each entry, found"):
        entries.read_entries(["a b: c.py", "a/b: c.py"], None)
    with pytest.raises(ValueError, match="expected entries"):
        entries.read_entries([], None)


def test_paired_test_is_scipys():
    values, base = [11.0, 17.0, 15.5, 12.0], [10.0, 14.0, 15.0, 11.5]
    found, expected = statistics.paired(values, base), ttest_rel(values, base)
    interval = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx((interval.low + interval.high) / 2, abs=1e-12)
    assert found.half == pytest.approx((interval.high - interval.low) / 2, abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)


def test_paired_test_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.4641 with 2 degrees of freedom,
    # whose distribution function is 1/2 + t / (2 sqrt(2 + t^2)); the 97.5 % quantile is 4.3027.
    found = statistics.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(2 + 12), rel=1e-6)
    assert str(found) == "+2.0 ± 2.5 (p 0.074)"


def test_two_seeds_give_a_difference_and_no_test():
    assert str(statistics.paired([11.0, 17.0], [10.0, 14.0])) == "+2.0"
    assert statistics.paired([], []) is None


def test_equal_differences_give_a_certain_test():
    assert str(statistics.paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])) == "+0.0 ± 0.0 (p 1)"
    assert str(statistics.paired([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])) == "+1.0 ± 0.0 (p < 0.001)"


def test_table_pairs_runs_by_seed():
    results = {
        "alone": {1: metrics(10.0), 2: metrics(14.0)},
        "method": {2: metrics(17.0), 1: metrics(11.0)},
    }
    text = table(results, {"method": "alone"}, [1, 2])
    # Differences 1 and 3; means of the rows 12 and 14.
    assert cells(text, "alone") == {
        "": "alone",
        "AP": "12.0 ± 2.8",
        "AP50": "24.0 ± 5.7",
        "AP75": "6.0 ± 1.4",
        "AP - alone": "",
    }
    assert cells(text, "method")["AP"] == "14.0 ± 4.2"
    assert cells(text, "method")["AP - alone"] == "+2.0"
    assert "fewer than three seeds allow no test" in text


def test_columns_can_be_chosen():
    text = table({"a": {1: metrics(10.0)}}, {}, [1], ["AP75", "AP"])
    assert list(cells(text, "a")) == ["", "AP", "AP75"]


def test_rows_with_bases_of_their_own_name_them():
    results = {name: {1: metrics(ap)} for name, ap in (("a", 1.0), ("b", 2.0), ("c", 4.5))}
    text = table(results, {"b": "a", "c": "b"}, [1])
    assert cells(text, "b")["AP difference"] == "+1.0 vs a"
    assert cells(text, "c")["AP difference"] == "+2.5 vs b"


def test_a_row_says_which_seeds_it_lacks_and_is_paired_over_the_others():
    results = {
        "a": {1: metrics(1.0), 2: metrics(2.0)},
        "b": {2: metrics(5.0), 3: metrics(9.0)},
        "none": {},
    }
    text = table(results, {"b": "a", "none": "a"}, [1, 2, 3])
    assert cells(text, "b (2 of 3 seeds)")["AP - a"] == "+3.0"
    assert set(cells(text, "none (0 of 3 seeds)").values()) == {"none (0 of 3 seeds)", ""}


def test_columns_that_no_run_has_are_left_out_and_masks_are_compared_too():
    box = metrics(10.0, APs=math.nan, APm=8.0)
    results = {
        "a": {1: {**box, "mask AP": 7.0, "s/iter": 0.1234, "RSS MiB": 1500.4, "at a time": 2}},
        "b": {1: {**box, "mask AP": 9.0, "s/iter": 0.2, "RSS MiB": 2000.0}},
    }
    found = cells(text := table(results, {"b": "a"}, [1]), "a")
    assert list(found) == [
        *("", "AP", "AP50", "AP75", "APm", "mask AP", "AP - a", "mask AP - a"),
        *("s/iter", "RSS MiB"),
    ]
    assert cells(text, "b")["mask AP - a"] == "+2.0"
    assert (found["s/iter"], found["RSS MiB"]) == ("0.123", "1,500")
    assert "Up to 2 runs at a time shared the machine" in " ".join(text.split())


def test_a_run_is_finished_with_its_last_metrics(tmp_path):
    run = one_run(tmp_path)
    assert run.result() is None
    last = {f"bbox/{k}": v for k, v in metrics(20.0).items()}
    finish(run, {"total_loss": 1}, last)
    assert run.result() == metrics(20.0)
    (run.folder / "model_final.pth").unlink()
    assert run.result() is None
    (run.folder / "model_final.pth").touch()
    with open(run.folder / "metrics.json", "a") as file:
        file.write('{"total_loss": 2}\n')
    assert run.result() is None


def test_half_a_line_of_a_killed_run_is_passed_over(tmp_path):
    run = one_run(tmp_path)
    finish(run, {"time": 1.0}, {"bbox/AP": 5.0, "segm/AP": 4.0})
    path = run.folder / "metrics.json"
    path.write_text('{"total_lo' + path.read_text() + '{"time"')
    assert run.result() == {"AP": 5.0, "mask AP": 4.0}


def test_a_detector_that_finds_nothing_has_an_ap_of_zero(tmp_path):
    run = one_run(tmp_path)
    finish(run, {f"bbox/{m}": math.nan for m in ("AP", "AP50", "AP75", "APs")})
    found = run.result()
    assert math.isnan(found.pop("APs")) and found == metrics(0.0)


def test_speed_is_the_median_after_the_first_line_and_memory_the_highest(tmp_path):
    run = one_run(tmp_path)
    times = [{"time": t, "data_time": t / 2} for t in (50.0, 1.0, 2.0, 9.0)]
    finish(run, {"total_loss": 1.0}, *times, {"bbox/AP": 1.0})
    (run.folder / "log.txt").write_text("lr: 1 max_mem: 90M\nx max_mem: 120M\n max_mem: 7M\n")
    run.note_usage(30.0, 1)
    run.note_usage(20.0, 2)
    assert json.loads((run.folder / "usage.json").read_text()) == {"RSS MiB": 30, "at a time": 2}
    assert run.result() == {
        "AP": 1.0,
        "s/iter": 2.0,
        "data s": 1.0,
        "GPU MiB": 120.0,
        "RSS MiB": 30.0,
        "at a time": 2,
    }


def test_runs_are_trained_measured_and_written(root):
    assert run_main(root, "a: c.py", "b: c.py scale=2", "--seeds", "1", "2", "3") == 0
    order = [(c["train.seed"], c.get("scale")) for c in calls(root)]
    assert order == [("1", None), ("1", "2"), ("2", None), ("2", "2"), ("3", None), ("3", "2")]
    text = (root / "out/results.md").read_text()
    assert cells(text, "b")["AP"] == "22.0 ± 1.0"
    assert cells(text, "b")["AP - a"] == "+10.0 ± 0.0 (p < 0.001)"
    assert cells(text, "b")["s/iter"] == "2"
    with open(root / "out/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["seed"]) for row in rows][:4] == [
        *(("a", "1"), ("a", "2"), ("a", "3")),
        ("b", "1"),
    ]
    assert rows[5]["AP"] == "23.0" and rows[5]["overrides"] == "scale=2"
    assert float(rows[5]["data s"]) == 0.2 and rows[5]["GPU MiB"] == ""
    height, width, _ = cv2.imread(str(root / "out/results.png")).shape
    assert width == 1200 and height > 200
    assert not list(root.rglob("*.tmp"))


def test_finished_runs_are_not_trained_again(root):
    run_main(root, "a: c.py", "--seeds", "1")
    run_main(root, "a: c.py", "--seeds", "1", "2", "2")
    assert [c["train.seed"] for c in calls(root)] == ["1", "2"]
    note = json.loads((root / "out/a/seed1/run.json").read_text())
    assert note["settings"] == ["c.py", "train.seed=1"]


def test_an_override_may_name_the_seed(root):
    run_main(root, "a: c.py train.init_checkpoint=first/seed{seed}/m.pth", "--seeds", "1", "2")
    found = [(c["train.seed"], c["train.init_checkpoint"]) for c in calls(root)]
    assert found == [("1", "first/seed1/m.pth"), ("2", "first/seed2/m.pth")]


def test_runs_of_the_first_version_are_known_without_a_digest(root):
    run_main(root, "a: c.py", "--seeds", "1")
    (root / "out/a/seed1/run.json").write_text(json.dumps(["c.py", "train.seed=1"]))
    run_main(root, "a: c.py", "--seeds", "1")
    assert len(calls(root)) == 1


@pytest.mark.parametrize("changed", ["c.py", "parts/base.py", "yacs.yaml", "parts/base.yaml"])
def test_a_config_that_was_changed_since_is_refused(root, changed):
    yacs = str(root / "yacs.yaml")
    (root / "c.py").write_text(
        f"from .parts.base import model\n_config = load_student_config({yacs!r})\n"
    )
    (root / "parts").mkdir()
    (root / "yacs.yaml").write_text('_BASE_: "parts/base.yaml"\n')
    (root / "parts" / "base.yaml").write_text("VERSION: 2\n")
    (root / "parts" / "base.py").write_text("model = 1\n")
    (root / "other.py").write_text("")
    run_main(root, "a: c.py", "--seeds", "1")
    (root / "other.py").write_text("x = 2")
    run_main(root, "a: c.py", "--seeds", "1")
    (root / changed).write_text((root / changed).read_text() + "model = 2\n")
    with pytest.raises(ValueError, match=r"run of c\.py as it is now, found one from before"):
        run_main(root, "a: c.py", "--seeds", "1")


def test_configs_of_the_current_folder_come_first_and_train_there(root, tmp_path, monkeypatch):
    own, shipped = tmp_path / "mine", tmp_path / "package/model_zoo/configs"
    own.mkdir()
    shipped.mkdir(parents=True)
    for folder, name in ((own, "mine.py"), (shipped, "mine.py"), (shipped, "c.py")):
        (folder / name).touch()
    monkeypatch.setattr(paths.d2kd, "__file__", str(tmp_path / "package/__init__.py"))
    monkeypatch.chdir(own)
    rows = entries.read_entries(["a: mine.py", "b: c.py"], None)
    assert [paths.find_config(e.config) for e in rows] == [own / "mine.py", shipped / "c.py"]
    assert run_main(root, "a: mine.py", "--seeds", "1") == 0
    assert calls(own) and not calls(root)


@pytest.mark.parametrize("name", ["..", ".", "results.md", "results.png"])
def test_names_that_cannot_be_folders_are_refused(root, name):
    with pytest.raises(ValueError, match="expected a name for a folder of its own"):
        entries.read_entries([f"{name}: c.py"], None)


def test_other_options_are_refused_before_anything_is_trained(root):
    run_main(root, "b: c.py", "--seeds", "1")
    with pytest.raises(ValueError, match=r"expected a run of c.py x=2 train.seed=1, found one of"):
        run_main(root, "a: c.py", "b: c.py x=2", "--seeds", "1")
    assert len(calls(root)) == 1


def test_a_failed_run_stops_no_other(root, capsys):
    assert run_main(root, "a: c.py fail=1", "b: c.py", "--seeds", "1", "2") == 1
    printed = capsys.readouterr()
    assert "a, seed 1: exit status 1" in printed.err and "it went wrong" in printed.err
    assert printed.out.count("AP\n") == 3 and "a, seed 1: FAILED" in printed.out
    assert cells(printed.out, "a (1 of 2 seeds)")["AP"] == "12.0"
    assert cells(printed.out, "b")["AP"] == "11.5 ± 0.7"
    assert cells(printed.out, "b")["AP - a"] == "+0.0"


def test_a_training_without_evaluation_has_failed(root, capsys):
    (root / "train_net.py").write_text("print('nothing to do')")
    assert run_main(root, "a: c.py", "--seeds", "1") == 1
    assert "ended without bbox/AP in metrics.json" in capsys.readouterr().err


def test_each_run_has_a_device_to_itself(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5e")
    monkeypatch.setattr(threads, "available_cpus", lambda: 6)
    run_main(root, "a: c.py sleep=0.6", "--seeds", "1", "2", "3", devices=("cuda:0", "cuda:1"))
    found = calls(root)
    assert {c["train.device"] for c in found} == {"cuda"} and {c["threads"] for c in found} == {"3"}
    for name in ("4", "GPU-5e"):
        mine = sorted((c["start"], c["end"]) for c in found if c["cuda"] == name)
        assert mine == [mine[0]] or mine[0][1] <= mine[1][0]
    ends, starts = min(c["end"] for c in found), sorted(c["start"] for c in found)
    assert starts[1] < ends  # two at a time


def test_on_the_cpu_jobs_share_the_cores(root, monkeypatch):
    monkeypatch.setattr(threads, "available_cpus", lambda: 8)
    run_main(root, "a: c.py", "--seeds", "1", "2", "--jobs", "3")
    assert {(c["train.device"], c["cuda"], c["threads"]) for c in calls(root)} == {("cpu", "", "2")}
    text = (root / "out/results.md").read_text()
    assert "Up to 3 runs at a time shared the machine" in " ".join(text.split())


def test_an_entry_may_name_its_device(root):
    run_main(root, "a: c.py train.device=mps", "--seeds", "1")
    assert calls(root)[0]["train.device"] == "mps"  # the last of both, as in train_net.py


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:2", "cuda:-1"])
def test_unknown_devices_are_refused(root, device, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match=f"--devices: .*found '{device}'"):
        run_main(root, "a: c.py", devices=(device,))


def test_memory_is_that_of_the_run_itself(root):
    command = tool(root, "a: c.py memory=300", "b: c.py", "--seeds", "1")
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    large, small = (
        json.loads((root / f"out/{name}/seed1/usage.json").read_text())["RSS MiB"] for name in "ab"
    )
    assert 300 < large < 500
    assert small < 200  # the tool itself has no torch in it, whose memory would count as theirs


def test_two_processes_do_not_train_in_one_folder(root, capsys):
    folder = root / "out/a/seed1"
    folder.mkdir(parents=True)
    with open(folder / "output.txt", "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert run_main(root, "a: c.py", "--seeds", "1", "2") == 1
    assert [c["train.seed"] for c in calls(root)] == ["2"]
    printed = capsys.readouterr().out
    assert "a, seed 1: another process still works on it, in " in printed
    assert "FAILED" not in printed
    # The process that was left at work has ended.
    assert run_main(root, "a: c.py", "--seeds", "1", "2") == 0


def test_table_only_trains_nothing_and_makes_no_folders(root, capsys):
    run_main(root, "a: c.py", "--seeds", "1")
    assert run_main(root, "a: c.py", "b: c.py", "--seeds", "1", "2", "--table-only") == 0
    assert len(calls(root)) == 1 and not (root / "out/b").exists()
    assert "| b (0 of 2 seeds)" in capsys.readouterr().out


def test_the_table_goes_between_its_markers(root):
    page = root / "page.md"
    other = "<!-- compare: other -->\nkept\n<!-- /compare -->\n"
    page.write_text(f"# Title\n{other}<!-- compare: main -->\nold\n<!-- /compare -->\nend\n")
    into = ["--into", f"{page}#main", "--seeds", "1"]
    run_main(root, "a: c.py", "b: c.py 'x=[1, 2]'", *into)
    text = page.read_text()
    assert text.startswith(f"# Title\n{other}<!-- compare: main -->\n\n| ")
    assert text.endswith("<!-- /compare -->\nend\n") and "old" not in text
    assert (root / "out/results.md").read_text() in text
    assert "    d2kd compare \\\n        'a: c.py' \\\n" in text
    assert "--seeds 1 --devices cpu\n" in text
    run_main(root, "a: c.py", "b: c.py 'x=[1, 2]'", *into)
    assert page.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- compare: a -->",
        "<!-- /compare --><!-- compare: a -->",
        "<!-- compare: a --><!-- compare: b --><!-- /compare -->",
        "<!-- compare: a --><!-- /compare -->" * 2,
    ],
)
def test_missing_markers_are_found_before_training(root, text):
    (root / "page.md").write_text(text)
    with pytest.raises(ValueError, match="expected one <!-- compare: a -->"):
        run_main(root, "a: c.py", "--into", f"{root}/page.md#a")
    assert not calls(root) and (root / "page.md").read_text() == text


@pytest.mark.parametrize(
    ("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)]
)  # Ctrl-C reaches the trainings too, kill does not
def test_trainings_end_with_the_comparison(root, number, send):
    (root / "train_net.py").write_text(
        "import os, time\nopen(f'{os.getpid()}.pid', 'w').close()\ntime.sleep(60)\n"
    )
    command = tool(root, "a: c.py", "--jobs", "2")
    main = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell's background job, as these tests may be, ignores Ctrl-C and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 20
    while len(pids := [int(p.stem) for p in root.glob("*.pid")]) < 2 and time.time() < deadline:
        time.sleep(0.05)
    send(main.pid, number)
    _, printed = main.communicate(timeout=20)
    assert len(pids) == 2 and main.returncode in (130, 143), printed
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert json.loads((root / "out/a/seed1/usage.json").read_text())["RSS MiB"] > 0


@pytest.mark.slow
def test_it_trains_compares_and_does_not_train_twice(tmp_path):
    path, folder = toys.coco_dataset(tmp_path / "data")
    config = tmp_path / "student.py"
    config.write_text(
        "from detectron2.config import LazyConfig\n"
        "from detectron2.data.datasets import register_coco_instances\n"
        "from detectron2.data import DatasetCatalog\n"
        "if 'toy' not in DatasetCatalog:\n"
        f"    register_coco_instances('toy', {{}}, {str(path)!r}, {str(folder)!r})\n"
        f"cfg = LazyConfig.load({str(ROOT / 'configs/demo/student.py')!r})\n"
        "dataloader, model, optimizer, lr_multiplier, train = (\n"
        "    cfg[k] for k in ('dataloader', 'model', 'optimizer', 'lr_multiplier', 'train'))\n"
        "dataloader.train.dataset.names = dataloader.test.dataset.names = 'toy'\n"
        "train.max_iter = 4\n"
    )
    command = [
        *(sys.executable, "-m", "d2kd.tools.compare"),
        f"first: {config}",
        f"lr: {config} optimizer.lr=0",
    ]
    command += ["--output", str(tmp_path / "out, 1"), "--seeds", "1", "2", "--jobs", "2"]
    outputs = [
        subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        ).stdout
        for _ in range(2)
    ]
    assert outputs[0].count("AP\n") == 4 and outputs[1].count("AP\n") == 0
    table = (tmp_path / "out, 1/results.md").read_text()
    assert table in outputs[0] and "| first" in table and "| lr" in table
    found = cells(table, "lr")
    assert float(found["s/iter"]) > float(found["data s"]) > 0
    assert float(found["RSS MiB"].replace(",", "")) > 100

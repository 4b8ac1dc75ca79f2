"""The demo: what it shows, what it trains again, and that it needs no checkout around it."""

import fcntl
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from d2kd.tools import demo, runs
from d2kd.tools.demo import choose, command, pictures, train
from d2kd.visualize import Column, compose_sheet, render_sheet
from tests import toys
from tests.test_matching import TWO, found, truth

# Does what train_net.py does, at once. Its arguments stay in calls.txt.
TRAIN = """
import json, os, sys
from pathlib import Path

options = dict(o.split("=", 1) for o in sys.argv[4:])
folder = Path(options["train.output_dir"].strip('"'))
with open("calls.txt", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
print("WARNING: a warning")
if "fail.txt" in os.listdir():
    sys.exit("it went wrong")
with open(folder / "metrics.json", "a") as metrics:
    for line in ({"iteration": 3, "total_loss": 2.5}, {"iteration": 5, "bbox/AP": 7.0}):
        metrics.write(json.dumps(line) + "\\n")
(folder / "model_final.pth").write_text("weights")
"""


def test_best_threshold():
    # From the surest on: right, right, wrong, wrong. F1 of 2 objects: 2/3, 1, 4/5, 2/3.
    first = found((0, 0, 10, 10, 3, 0.9), (20, 0, 30, 10, 7, 0.6), (50, 0, 60, 10, 7, 0.5))
    second = found((0, 0, 10, 10, 3, 0.4))
    assert choose.best_threshold([first, second], [TWO, truth()]) == 0.6
    assert choose.best_threshold([found()], [TWO]) == 0.5


def test_choice_of_images():
    good = found((0, 0, 10, 10, 3, 0.9), (20, 0, 30, 10, 7, 0.8))  # no error
    half = found((0, 0, 10, 10, 3, 0.9))  # one
    none = found()  # two
    truths = dict.fromkeys("abcde", TWO) | {"f": truth((0, 0, 10, 10, 3))}
    alone = dict(a=good, b=none, c=good, d=none, e=half, f=none)
    distilled = dict(a=good, b=good, c=none, d=none, e=half, f=none)
    chosen, rule = choose.choose_images(truths, alone, distilled, differ=2, fail=1, least=2)
    # b and c differ most, one either way; of the rest d is the worst; f has too few objects.
    assert chosen == ["b", "c", "d"]
    assert "at least 2 objects" in rule and "whichever is better" in rule


def test_sheet(tmp_path):
    image = toys.image(size=(64, 64))
    views = [pictures.View(name, "AP 1", {5: found()}) for name in ("one", "two")]
    columns = pictures.distillation_columns(
        views, toys.retinanet(), {5: image}, {5: truth((8, 8, 40, 40, 1))}, "abc"
    )
    assert [len(c.drawings) for c in columns] == [1] * 4
    assert isinstance(columns[0], Column)
    path = tmp_path / "sheet.png"
    texts = dict(title="t", subtitle="s", caption="word " * 99, width=600)
    compose_sheet(path, columns, **texts)
    width, height = Image.open(path).size
    assert width == 600
    assert render_sheet(columns, **texts, legend=False).shape[0] == height - 36  # of the legend


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, far from the checkout, with a train_net.py that is done at once."""
    (tmp_path / "train_net.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "TRAIN", (sys.executable, str(tmp_path / "train_net.py")))
    return tmp_path


def calls() -> list[list[str]]:
    path = Path("calls.txt")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_all(*options: str, data: str = "data 1") -> None:
    train.train_all(command.parse_args(options), Path("output/demo"), data)


def test_the_runs_are_below_the_current_folder_and_are_not_trained_twice(folder, capsys):
    train_all("--seed", "7", "--max-iter", "6")
    (alone, distilled), configs = calls(), train.configs_folder() / "demo"
    assert alone[:2] == ["--config-file", str(configs / "student_continued.py")]
    assert alone[2:4] == ["train.seed=7", "train.max_iter=6"] == distilled[2:4]
    assert distilled[1] == str(configs / "distill_continued.py")
    assert alone[4] == f'train.output_dir="{folder}/output/demo/alone"'
    shipped = (configs / "teacher.pth").read_bytes()
    assert Path("output/demo/teacher/model_final.pth").read_bytes() == shipped
    printed = capsys.readouterr().out
    assert (
        "student alone      ########################     6/6  loss 2.500  AP 7.0  took" in printed
    )
    train_all("--seed", "7", "--max-iter", "6")
    assert len(calls()) == 2
    assert "student distilled  trained already, 6 iterations" in capsys.readouterr().out


def test_other_inputs_put_a_run_aside(folder, capsys):
    train_all("--max-iter", "6")
    train_all("--max-iter", "6", data="data 2")
    assert len(calls()) == 4
    printed = capsys.readouterr().out
    assert "student alone: starting anew (made with another data)" in printed
    assert Path("output/demo/alone.old/model_final.pth").exists()
    train_all("--max-iter", "6", "--fresh", data="data 2")
    assert len(calls()) == 6 and "(--fresh)" in capsys.readouterr().out


def test_the_fingerprint_does_not_depend_on_where_d2kd_lies(tmp_path, monkeypatch):
    from d2kd.config import load_config

    here = train.fingerprint(load_config(train.config_path(train.CONFIGS["distilled"])))
    elsewhere = tmp_path / "model_zoo" / "configs"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(train.configs_folder().resolve())
    monkeypatch.setattr(train, "configs_folder", lambda: elsewhere)
    path = train.config_path(train.CONFIGS["distilled"])
    assert path.startswith(str(tmp_path)) and train.fingerprint(load_config(path)) == here


def test_a_failed_training_ends_the_demo_with_its_output(folder, monkeypatch, capsys):
    Path("fail.txt").touch()
    monkeypatch.setattr(command, "demo", lambda args: train_all("--max-iter", "6"))
    assert command.main([]) == 1
    printed = capsys.readouterr()
    assert "student alone: training failed: exit status 1" in printed.err
    assert "it went wrong" in printed.err and "--max" not in printed.err
    assert "a warning" in printed.out  # above the line, as it comes


def test_two_demos_do_not_share_a_folder(folder):
    train_all("--max-iter", "6")
    with open("output/demo/alone/output.txt", "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(train.Failed, match="another process trains in output/demo/alone"):
            train_all("--max-iter", "6", "--fresh")
    assert Path("output/demo/alone/model_final.pth").exists()


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "demo", interrupt)
    with pytest.raises(KeyboardInterrupt, match="The same command goes on from the last"):
        demo.main([])  # `d2kd` prints it


def test_help_ends_with_two_examples(capsys):
    with pytest.raises(SystemExit) as end:
        demo.main(["--help"])
    last = capsys.readouterr().out.split("examples:\n")[1].splitlines()
    assert end.value.code == 0 and len(last) == 2 and all("d2kd demo" in line for line in last)

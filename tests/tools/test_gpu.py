"""`make gpu`: what does not need a GPU of it, with tiny sizes on a CPU."""

from __future__ import annotations

import argparse
import json
import sys
import time

import pytest
import torch

from d2kd.tools.gpu import command as gpu
from d2kd.tools.gpu import main
from d2kd.tools.gpu.parts import (
    PARTS,
    Setting,
    compile_losses,
    find_waits,
    measure_step,
    train_and_resume,
)
from d2kd.tools.gpu.report import JSON, PAGE, page, read_report, write_report

MACHINE = dict(device="A GPU", torch="2.9", cuda="12.8", detectron2="0.6", d2kd="0.1")


@pytest.fixture
def setting(tmp_path):
    return Setting("cpu", True, tmp_path, seconds=60.0)


# The command


def test_without_a_gpu_one_line_says_so_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--output", str(tmp_path / "docs")]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not (tmp_path / "docs").exists()


def test_all_parts_together_stay_under_nine_minutes():
    assert sum(part.seconds for part in PARTS.values()) <= gpu.BUDGET < 9 * 60


@pytest.fixture
def children(monkeypatch):
    """Parts run nothing; a list of their names. "waits" fails."""
    calls = []

    def run(name, args, seconds):
        calls.append(name)
        status = "failed" if name == "waits" else "done"
        return dict(status=status, seconds=1.0, text=f"text of {name}", data={})

    monkeypatch.setattr(gpu, "run_in_child", run)
    return calls


def test_a_second_call_runs_what_is_missing_or_failed(tmp_path, children, capsys):
    argv = ["--output", str(tmp_path), "--device", "cpu"]
    assert main([*argv, "--parts", "step", "waits"]) == 1
    assert children == ["step", "waits"] and "not run yet" in (tmp_path / PAGE).read_text()
    children.clear()
    assert main(argv) == 1  # "waits" fails again
    assert children == [name for name in PARTS if name != "step"]
    assert "not run yet" not in (tmp_path / PAGE).read_text()
    children.clear()
    assert main([*argv, "--parts", "step", "--fresh"]) == 0
    assert children == ["step"]


def test_no_part_begins_that_may_end_too_late(tmp_path, children, capsys):
    seconds = PARTS["waits"].seconds + 5
    main(["--output", str(tmp_path), "--device", "cpu", "--seconds", str(seconds)])
    assert children == [name for name, part in PARTS.items() if part.seconds <= seconds]
    assert "Call the command again" in capsys.readouterr().out


def fake(code: str, monkeypatch) -> argparse.Namespace:
    """Let the child be this program."""
    real = gpu.subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess,
        "Popen",
        lambda command, **fields: real([sys.executable, "-c", code], **fields),
    )
    return argparse.Namespace(device="cpu", quick=True)


def test_a_part_that_takes_too_long_is_ended(monkeypatch):
    args = fake("import time; time.sleep(60)", monkeypatch)
    start = time.monotonic()
    record = gpu.run_in_child("step", args, seconds=0.5)
    assert record["status"] == "over time" and time.monotonic() - start < 20


def test_a_part_that_crashes_leaves_its_last_lines(monkeypatch):
    args = fake("raise MemoryError('no room')", monkeypatch)
    record = gpu.run_in_child("step", args, seconds=60)
    assert record["status"] == "error" and "MemoryError: no room" in record["text"]


@pytest.mark.slow
def test_a_part_in_a_child(tmp_path):
    args = argparse.Namespace(device="cpu", quick=True)
    record = gpu.run_in_child("waits", args, seconds=300)
    assert record["status"] == "done", record["text"]
    assert record["data"] == {"student step": 0, "distilled step": 0}


# The report


def test_the_page_shows_machine_status_and_texts():
    parts = {
        "tests": dict(status="done", seconds=12.3, text="2 passed"),
        "waits": dict(status="failed", seconds=3.0, text="it adds 4"),
    }
    text = page(dict(machine=MACHINE, parts=parts))
    assert "A GPU, PyTorch 2.9, CUDA 12.8" in text
    assert "| Tests | yes | 12 |" in text and "| Waits | **it failed** | 3 |" in text
    assert "| A step | not run yet |  |" in text
    assert text.index("2 passed") < text.index("it adds 4") and "## A step" not in text


def test_figures_of_another_machine_are_not_mixed(tmp_path):
    report = dict(machine=MACHINE, parts={"step": dict(status="done", seconds=1.0, text="x")})
    write_report(tmp_path, report)
    assert json.loads((tmp_path / JSON).read_text()) == report
    assert read_report(tmp_path, MACHINE) == report
    other = dict(MACHINE, device="Another GPU")
    assert read_report(tmp_path, other) == dict(machine=other, parts={})


# The parts


def test_a_step(setting):
    found = measure_step(setting)
    assert "distilled step / student step" in found.text and found.data["amp"] == "bfloat16"


def test_compiled_losses_are_compared_with_the_same_losses(setting, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, backend: compiled.append(type(self).__name__)
    )
    found = compile_losses(setting)
    assert compiled == ["FGD", "PGD", "PKD", "CWD"]
    assert set(found.data["ratios"]) == {"fgd", "pgd", "pkd", "cwd"} and not found.data["failed"]
    assert all(ratio > 0 for ratio in found.data["ratios"].values())
    names = [m["name"] for m in found.data["measurements"]]
    assert names == [*found.data["ratios"], *(f"{x} compiled" for x in found.data["ratios"])]


@pytest.mark.slow
def test_losses_really_compile(setting):
    # PyTorch 2.14 stops at PGD with an error of its own.
    assert set(compile_losses(setting, backend="eager").data["failed"]) <= {"pgd"}


def test_a_loss_that_does_not_compile_is_a_row(setting):
    found = compile_losses(setting, backend="no_such_backend")
    assert set(found.data["failed"]) == {"fgd", "pgd", "pkd", "cwd"}
    assert "no_such_backend" in found.text


def test_waits_are_compared(setting, monkeypatch):
    counts = iter([3, 5])
    monkeypatch.setattr("d2kd.tools.gpu.parts.count_waits", lambda step, device: next(counts))
    found = find_waits(setting)
    assert not found.passed and "distillation adds 2" in found.text


@pytest.mark.slow
def test_a_training_resumes(setting):
    found = train_and_resume(setting)
    assert found.passed and found.data["resumed_at"] == 2 and len(found.data["loss"]) == 4
    assert found.data["weight_difference"] == 0  # on a CPU, resuming is exact


def test_the_resumed_training_begins_in_the_middle(setting, monkeypatch):
    seen = {}

    def fake_training(setting, words, output):
        seen[output.name] = words
        output.mkdir(exist_ok=True)
        start = 2 if "--resume" in words else 0
        lines = [json.dumps(dict(iteration=i, total_loss=9.0 - i)) for i in range(start, 4)]
        (output / "metrics.json").write_text("\n".join(lines))
        torch.save(dict(model={"w": torch.tensor([1.0, start])}), output / "model_final.pth")
        torch.save({}, output / "model_0000001.pth")
        return 5.0

    monkeypatch.setattr("d2kd.tools.gpu.parts._train", fake_training)
    found = train_and_resume(setting)
    assert seen["resumed"] == [*seen["whole"], "--resume"] and "train.max_iter=4" in seen["whole"]
    assert (setting.folder / "resumed/last_checkpoint").read_text() == "model_0000001.pth"
    assert found.passed and found.data["seconds"] == 10
    assert found.data["weight_difference"] == 2 and found.data["loss"] == [9, 8, 7, 6]

"""What `make gpu` runs. Each part is a function that gives what the report shows.

A part runs in a process of its own (`command.py`), so that a crash or a lack of memory ends only
this part. Each one also runs on a CPU with small sizes, for tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.utils.events import EventStorage
from tabulate import tabulate

import d2kd
from d2kd import model_zoo
from d2kd.checkpoint import find_state_dict, read_checkpoint
from d2kd.config import load_config
from d2kd.data.demo import SPLITS, make_demo
from d2kd.methods import CWD, FGD, PGD, PKD, Methods
from d2kd.metrics import read_metrics
from d2kd.tools import benchmark
from d2kd.tools.benchmark.costs import scene_turns, step_turns
from d2kd.tools.benchmark.setting import (
    ALONE,
    DISTILLED,
    build_model,
    build_trainers,
    large_maps,
    random_batch,
)
from d2kd.tools.benchmark.stopwatch import Ratio, Spread, Turn, take_turns

__all__ = ["PARTS", "Found", "Part", "Setting"]

CONFIG = "retinanet/retinanet_R_50_FPN_2x_fgd.py"
COMPILED = " compiled"


@dataclass(frozen=True)
class Setting:
    """How the parts run.

    Attributes:
        device: "cuda", or "cpu" for tests.
        quick: small networks and images, for tests.
        folder: where a part may write files.
        seconds: how long the part may take.
    """

    device: str
    quick: bool
    folder: Path
    seconds: float


class Found(NamedTuple):
    """What a part has found.

    Attributes:
        text: Markdown for the report.
        data: the figures, for the JSON file.
        passed: whether what it checks is so.
    """

    text: str
    data: dict[str, Any]
    passed: bool = True


class Part(NamedTuple):
    """A part of the report.

    Attributes:
        title: its heading.
        question: what it answers.
        seconds: its budget. A part that takes longer is ended.
        run: gives what it has found.
    """

    title: str
    question: str
    seconds: float
    run: Callable[[Setting], Found]


def run_tests(setting: Setting) -> Found:
    """The tests with the mark "gpu"."""
    root = Path(d2kd.__file__).parents[1]
    if not (root / "tests/conftest.py").is_file():
        return Found("Not run: the tests are in the repository only.", {})
    files = sorted(str(x) for x in root.glob("tests/**/*.py") if "mark.gpu" in x.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += files[-1:] if setting.quick else files
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
    return Found(
        f"`pytest -m gpu`: {last[0]}", {"output": done.stdout[-4000:]}, not done.returncode
    )


def measure_step(setting: Setting) -> Found:
    """Time and memory of a distilled step, of its parts and of its method."""
    options = ["--sizes", "800x1344", "--boxes", "20", "--batch", "2", "--rounds", "30"]
    config = CONFIG
    if setting.quick:
        config = "demo/distill.py"
        options = ["--sizes", "64", "--boxes", "2", "--batch", "1", "--rounds", "1"]
        options += ["--warm-up", "0"]
    return _benchmark(setting, config, options)


def measure_methods(setting: Setting) -> Found:
    """Time and memory of the losses of most methods, on maps of real size."""
    methods = ["fgd", "pgd", "mimic", "mgd", "pkd", "cwd", "pfi", "rm"]
    if setting.quick:
        return _benchmark(setting, "demo/distill.py", ["--sizes", "64", "--rounds", "1"])
    return _benchmark(setting, "demo/distill.py", ["--real-size", *methods, "--rounds", "30"])


def _benchmark(setting: Setting, config: str, options: list[str]) -> Found:
    output = setting.folder / "benchmark"
    minutes = ["--minutes", str(0.6 * setting.seconds / 60), "--amp", "bfloat16"]
    argv = ["--config-file", config, f"train.device={setting.device}", *options, *minutes]
    benchmark.main([*argv, "--output", str(output)])
    results = json.loads((output / "results.json").read_text())
    return Found((output / "results.md").read_text().strip(), results)


def compile_losses(setting: Setting, backend: str = "inductor") -> Found:
    """Whether `torch.compile` makes the losses of a method faster, and how long it compiles.

    Args:
        backend: of `torch.compile`.
    """
    size, batch, rounds = ((64, 64), 1, 1) if setting.quick else ((800, 1344), 2, 20)
    device = torch.device(setting.device)
    model, twin = (
        large_maps(Methods(fgd=FGD(), pgd=PGD(), pkd=PKD(), cwd=CWD())).to(device) for _ in range(2)
    )
    names = list(model.distillation)
    turns: list[Turn] = []
    data: dict[str, Any] = {"first_call_s": {}, "failed": {}}
    with EventStorage():
        for turn in scene_turns(model, {}, "s", size, [20], batch):
            turns += [turn] if turn.name in names else []
        for turn in scene_turns(twin, {}, "s", size, [20], batch):
            if turn.name not in names:
                continue
            start = time.perf_counter()
            try:
                twin.distillation[turn.name].compile(backend=backend)
                turn.take(device, keep=False)
            except Exception as error:  # whatever the compiler raises
                data["failed"][turn.name] = f"{type(error).__name__}: {error}"[:300]
                continue
            data["first_call_s"][turn.name] = time.perf_counter() - start
            turn.name += COMPILED
            turns.append(turn)
        minutes = 0.3 * setting.seconds / 60
        take_turns(turns, rounds=rounds, warm_up=1, device=device, minutes=minutes)
    records = [turn.record() for turn in turns]
    data["measurements"] = records
    rows = []
    for name in names:
        if name in data["failed"]:
            rows.append([name, data["failed"][name].splitlines()[0], ""])
            continue
        ratio = Ratio("", {name + COMPILED: 1}, [name])
        (found,) = ratio.records(records)
        spread = Spread(found["median"], found["low"], found["high"])
        rows.append([name, spread.show(), f"{data['first_call_s'][name]:.1f}"])
        data.setdefault("ratios", {})[name] = found["median"]
    head = ["method", "compiled / not compiled", "first call, s"]
    return Found(tabulate(rows, head, tablefmt="github", disable_numparse=True), data)


def count_waits(step: Callable[[Any], Any], device: torch.device) -> int:
    """How often a step makes the host wait for the GPU; 0 on a CPU."""
    if device.type != "cuda":
        step(None)
        return 0
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def find_waits(setting: Setting) -> Found:
    """How often the host waits for the GPU in a step, alone and distilled."""
    size, batch = ((64, 64), 1) if setting.quick else ((800, 1344), 2)
    config = "demo/distill.py" if setting.quick else CONFIG
    cfg = load_config(config, [f"train.device={setting.device}"])
    model = build_model(cfg)
    device = torch.device(setting.device)
    counts = {}
    with EventStorage() as storage:
        trainers = build_trainers(cfg, model)
        inputs = random_batch(size, 20, batch, trainers[ALONE].model)
        turns = step_turns(lambda *a, **k: Turn("", 20, *a, **k), model, trainers, inputs, size)
        for turn in turns:
            if turn.name in trainers:
                turn.take(device, keep=False)  # what is set up in the first step
                storage.step()
                counts[turn.name] = count_waits(turn.phases["step"], device)
                turn.tidy()
                storage.step()
    added = counts[DISTILLED] - counts[ALONE]
    text = (
        f"The host waits {counts[ALONE]} times in a step of the student alone, for example in "
        f"Detectron2's label assignment, and {counts[DISTILLED]} times in a distilled step: "
        f"distillation adds {added}."
    )
    return Found(text, counts, added <= 0)


def train_and_resume(setting: Setting) -> Found:
    """A short training in mixed precision, and the same one resumed from its middle."""
    steps, batch, images = (4, 2, 4) if setting.quick else (60, 16, 128)
    sizes = {name: images if name == "demo_train" else 4 for name in SPLITS}
    make_demo(setting.folder / "datasets", sizes)
    whole, resumed = (setting.folder / name for name in ("whole", "resumed"))
    dtype = "float16" if setting.device.startswith("cuda") else "bfloat16"
    overrides = [
        f"train.device={setting.device}",
        f"train.max_iter={steps}",
        f"train.checkpointer.period={steps // 2}",
        "train.log_period=1",
        "train.amp.enabled=True",
        f"train.amp.dtype={dtype}",
        f"dataloader.train.total_batch_size={batch}",
    ]
    seconds = _train(setting, overrides, whole)
    middle = f"model_{steps // 2 - 1:07d}.pth"
    resumed.mkdir()
    shutil.copyfile(whole / middle, resumed / middle)
    (resumed / "last_checkpoint").write_text(middle)
    seconds += _train(setting, [*overrides, "--resume"], resumed)
    before, after = (_losses(folder) for folder in (whole, resumed))
    losses = list(before.values())
    data = dict(
        dtype=dtype,
        seconds=seconds,
        loss=losses,
        resumed_at=min(after),
        weight_difference=_difference(whole, resumed),
    )
    text = (
        f"{steps} steps of the demo's distiller in {dtype}, and the last {steps // 2} of them once "
        f"more from the checkpoint in the middle: {seconds:.0f} s. The loss goes from "
        f"{losses[0]:.2f} to {losses[-1]:.2f}. The final weights of both "
        f"runs differ by at most {data['weight_difference']:.1e}."
    )
    ok = data["resumed_at"] == steps // 2 and len(before) == steps
    return Found(text, data, ok)


def _train(setting: Setting, words: list[str], output: Path) -> float:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(setting.folder / "datasets")}
    command = [sys.executable, "-m", "d2kd.tools.train", "--config-file"]
    config = model_zoo.get_config_file("demo/distill.py")
    command += [config, *words, f"train.output_dir={output}"]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the training stopped: {(done.stdout + done.stderr)[-1500:]}")
    return time.perf_counter() - start


def _losses(folder: Path) -> Mapping[int, float]:
    """Iteration -> total loss, from metrics.json."""
    lines = read_metrics(folder)
    return {x["iteration"]: x["total_loss"] for x in lines if "total_loss" in x}


def _difference(*folders: Path) -> float:
    """The largest difference between the tensors of two finished runs."""
    files = [str(folder / "model_final.pth") for folder in folders]
    one, two = (find_state_dict(read_checkpoint(file), file)[0] for file in files)
    return max(float((one[k].double() - two[k].double()).abs().max()) for k in one)


PARTS = {
    "tests": Part("Tests", "Do the tests that need a GPU pass?", 80, run_tests),
    "step": Part("A step", "What does a distilled step cost, in bfloat16?", 100, measure_step),
    "methods": Part("Methods alone", "What do the losses cost?", 80, measure_methods),
    "compiled": Part("Compiled losses", "Does `torch.compile` help them?", 110, compile_losses),
    "waits": Part("Waits", "Does distillation make the host wait for the GPU?", 40, find_waits),
    "training": Part(
        "Mixed precision and resume",
        "Does a training in mixed precision run, and go on where it stopped?",
        110,
        train_and_resume,
    ),
}

#!/usr/bin/env python
"""The demo: train a small student alone and with its teacher, and compare them.

Writes <output>/{teacher,alone,distilled}/ (the runs), results.json and demo.png. A run that was
interrupted goes on where its last checkpoint is; a finished one is not trained again unless its
config, its data or its teacher has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {role: f"configs/demo/{role}.py" for role in ("teacher", "student", "distill")}
SHIPPED = Path("configs/demo/teacher.pth")
TITLES = {"teacher": "teacher", "alone": "student alone", "distilled": "student distilled"}
# Warnings of the libraries about one another that a user can do nothing about.
NOISE = ["torch.meshgrid", "`torch.jit.script", "pkg_resources is deprecated"]
SPEED_IMAGES = 20  # validation images whose time is measured


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="folder of all results (output/demo)")
    parser.add_argument("--seed", type=int, help="of all training; default: the configs'")
    parser.add_argument(
        "--max-iter", type=int, help="train less, for a quick look; best with its own --output"
    )
    parser.add_argument("--fresh", action="store_true", help="train again what is finished")
    parser.add_argument(
        "--train-teacher", action="store_true", help="train the teacher too, instead of taking "
        f"{SHIPPED}"
    )  # fmt: skip
    return parser.parse_args()


class Progress:
    """One line on a terminal; elsewhere a line for every tenth of the way."""

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total
        self.live = sys.stdout.isatty()
        self.start, self.tenth = time.time(), -1

    def show(self, done: int, words: str) -> None:
        filled = 24 * done // self.total
        line = f"{self.title:<18} {'#' * filled:.<24} {done:>5}/{self.total}  {words}"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", flush=True)
        elif 10 * done // self.total > self.tenth:
            self.tenth = 10 * done // self.total
            print(line, flush=True)

    def say(self, words: str) -> None:
        """Something else, above the line."""
        print(f"\r\x1b[K{words}" if self.live else words, flush=True)

    def finish(self, words: str) -> None:
        self.tenth = -1
        self.show(self.total, f"{words}  took {clock(time.time() - self.start)}")
        print(end="\n" if self.live else "", flush=True)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def fingerprint(cfg) -> str:
    """Of all that a LazyConfig says, wherever the checkout lies."""
    from detectron2.config import LazyConfig

    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, f"{folder}/config.yaml")
        text = Path(folder, "config.yaml").read_text()
        return digest(text.replace(f"{ROOT}{os.sep}", "").encode())


def prepare(folder: Path, inputs: dict[str, str], fresh: bool) -> bool:
    """Make a run's folder; put aside what is in it if that was made from other inputs.

    Returns:
        whether the run is finished.
    """
    from d2kd.files import write_json

    record = folder / "inputs.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if folder.exists() and any(folder.iterdir()) and (fresh or known != inputs):
        changed = sorted(k for k in {*known, *inputs} if known.get(k) != inputs.get(k))
        why = "--fresh" if fresh else f"made with another {' and '.join(changed)}"
        note = ""
        if any(folder.glob("*.pth")):
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            note = f"; what was there is now in {old}"
        else:  # nothing was trained, so that an older run put aside is worth more
            shutil.rmtree(folder)
        print(f"{TITLES[folder.name]}: starting anew ({why}){note}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, inputs)
    return (folder / "model_final.pth").exists()


def train(folder: Path, config: str, overrides: list[str], inputs: dict, fresh: bool) -> None:
    """Train a run with train_net.py unless it is finished."""
    from d2kd.config import load_config

    cfg = load_config(config, overrides)
    cfg.train.output_dir = ""
    inputs = {"config": fingerprint(cfg), **inputs}
    title, total = TITLES[folder.name], cfg.train.max_iter
    if prepare(folder, inputs, fresh):
        print(f"{title:<18} trained already, {total} iterations ({folder}; --fresh trains again)")
        return
    quoted = str(folder).replace('"', '\\"')
    command = [sys.executable, "train_net.py", "--resume", "--config-file", config]
    command += [*overrides, f'train.output_dir="{quoted}"']
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = [os.environ.get("PYTHONWARNINGS"), *(f"ignore:{words}" for words in NOISE)]
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONWARNINGS": ",".join(filter(None, quiet)),
        "PYTHONUNBUFFERED": "1",
    }
    console = folder / "console.txt"
    with open(console, "w") as out:
        run = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        watch(run, folder, Progress(title, total))
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait()
    if run.returncode or not (folder / "model_final.pth").exists():
        last = "".join(console.read_text(errors="replace").splitlines(keepends=True)[-15:])
        sys.exit(
            f"\n{last}\n{title}: training failed (exit status {run.returncode}).\n"
            f"  all it printed  {console}\n"
            f"  its command     {shlex.join(command)}"
        )


def new_lines(file: IO[str]) -> Iterator[str]:
    """Whole lines that were added to a file since it was last read."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield line


def watch(run: subprocess.Popen, folder: Path, progress: Progress) -> None:
    """Show how a run gets on until it ends, and the warnings and errors that it prints."""
    metrics, done, loss, ap = folder / "metrics.json", 0, "", ""
    metrics.touch()
    with open(folder / "console.txt", errors="replace") as printed, open(metrics) as measured:
        measured.seek(0, os.SEEK_END)  # a resumed run appends
        progress.show(0, "starting")
        running = True
        while running:
            time.sleep(0.5)
            running = run.poll() is None
            for line in new_lines(printed):
                if any(word in line for word in ("WARNING", "ERROR", "Warning: ")):
                    progress.say(line.rstrip())
            for line in new_lines(measured):
                now = json.loads(line)
                if not math.isnan(now.get("bbox/AP", math.nan)):
                    ap = f"  AP {now['bbox/AP']:.1f}"
                if "total_loss" in now:
                    done, loss = now["iteration"] + 1, f"loss {now['total_loss']:.3f}"
                    eta = f"ETA {clock(now.get('eta_seconds', 0))}"
                    words = eta if done < progress.total else "evaluating"
                    progress.show(done, f"{loss}{ap}  {words}")
    if run.returncode == 0:
        progress.finish(f"{loss}{ap}")


def get_teacher(folder: Path, args: argparse.Namespace, overrides: list[str], data: str) -> Path:
    """Train the teacher or copy the shipped one; return its weights."""
    weights = folder / "model_final.pth"
    if args.train_teacher:
        train(folder, CONFIGS["teacher"], overrides, {"data": data}, args.fresh)
        return weights
    if not SHIPPED.exists():
        sys.exit(f"No teacher: expected its checkpoint at {ROOT / SHIPPED}, found no file.\n"
                 f"  run  {sys.executable} tools/demo.py --train-teacher")  # fmt: skip
    if not prepare(folder, {"teacher": digest(SHIPPED.read_bytes())}, fresh=False):
        shutil.copyfile(SHIPPED, folder / ".model_final.tmp")
        os.replace(folder / ".model_final.tmp", weights)
    print(f"{TITLES['teacher']:<18} {SHIPPED}, trained by this project's {CONFIGS['teacher']}")
    return weights


def train_all(args: argparse.Namespace, output: Path, data: str) -> None:
    """The three runs, one after the other."""
    from d2kd.config import load_config

    overrides = [] if args.seed is None else [f"train.seed={args.seed}"]
    overrides += [] if args.max_iter is None else [f"train.max_iter={args.max_iter}"]
    weights = get_teacher(output / "teacher", args, overrides, data)
    train(output / "alone", CONFIGS["student"], overrides, {"data": data}, args.fresh)
    if args.train_teacher:
        quoted = str(weights).replace('"', '\\"')
        overrides = [*overrides, f'model.teacher.weights="{quoted}"']
    model = fingerprint(load_config(CONFIGS["teacher"]).model)
    teacher = digest(f"{model} {digest(weights.read_bytes())}".encode())
    inputs = {"data": data, "teacher": teacher}
    train(output / "distilled", CONFIGS["distill"], overrides, inputs, args.fresh)


def measure(output: Path) -> tuple[dict, dict, dict]:
    """Evaluate the three runs and write results.json.

    Returns:
        run -> figures, run -> detections by image id, run -> detector.
    """
    from detectron2.config import instantiate

    from d2kd.config import load_config
    from d2kd.evaluation.figures import (
        count_gflops,
        count_parameters,
        load_plain,
        measure_accuracy,
        measure_speed,
    )
    from d2kd.files import write_json

    configs = {role: load_config(CONFIGS[role]) for role in ("teacher", "student")}
    # The distilled student is a plain one: Detectron2 loads it into the student's own config.
    configs = {name: configs["teacher" if name == "teacher" else "student"] for name in TITLES}
    models, results, found = {}, {}, {}
    for name, cfg in configs.items():
        print(f"evaluating the {TITLES[name]} ...", flush=True)
        models[name] = load_plain(cfg, output / name / "model_final.pth")
        results[name], found[name] = measure_accuracy(cfg, models[name])
    test = configs["alone"].dataloader.test
    mapper = instantiate(test.mapper)
    batches = [[mapper(record)] for record in instantiate(test.dataset)[:SPEED_IMAGES]]
    times = measure_speed(models, batches)
    for name, model in models.items():
        gflops = count_gflops(model, batches[0])
        results[name] |= dict(params=count_parameters(model), gflops=gflops, ms=times[name])
    write_json(output / "results.json", results)
    return results, found, models


def draw(path: Path, results: dict, found: dict, teacher, headline: str) -> None:
    """Write the picture."""
    from detectron2.config import instantiate
    from detectron2.data import MetadataCatalog

    from d2kd import matching, visualize
    from d2kd.config import load_config

    test = load_config(CONFIGS["student"]).dataloader.test
    records = {record["image_id"]: record for record in instantiate(test.dataset)}
    truths = {i: matching.GroundTruth.from_record(record) for i, record in records.items()}
    detections = matching.Detections.from_instances
    views, shown = [], {}
    for name, title in TITLES.items():
        all_found = {
            i: matching.suppress_across_classes(detections(found[name][i])) for i in records
        }
        least = matching.best_threshold(list(all_found.values()), list(truths.values()))
        shown[name] = {i: x.above(least) for i, x in all_found.items()}
        heading = f"{title.capitalize()}: {results[name]['AP']:.1f} AP"
        size = f"{results[name]['params'] / 1e6:.2f} M parameters"
        views.append(visualize.View(heading, f"{size} · score ≥ {least:.2f}", shown[name]))
    chosen, rule = matching.choose_images(truths, shown["alone"], shown["distilled"])
    mapper = instantiate(test.mapper)
    methods = load_config(CONFIGS["distill"]).model.methods
    tau = next((m.tau for m in methods.values() if hasattr(m, "tau")), 0.5)
    columns = visualize.distillation_columns(
        views,
        teacher,
        {i: mapper(records[i]) for i in chosen},
        truths,
        MetadataCatalog.get(test.dataset.names).thing_classes,
        tau=tau,
    )
    visualize.compose_sheet(
        path,
        columns,
        title="A small detector learns from a larger one",
        subtitle=headline,
        caption=f"{rule} Of boxes that overlap by more than half the surest is shown, and each "
        f"detector from the score on at which its F1 over the validation set is then best. "
        f"Attention and key regions (FGD's spatial attention and "
        f"foreground mask, at stride 4) say where the student is to resemble the teacher: they "
        f"multiply, and a cell of a small object weighs more than one of a large object.",
    )


def main() -> None:
    args = parse_args()
    output = Path(os.path.abspath(args.output)) if args.output else Path("output/demo")
    os.chdir(ROOT)  # the configs name files from there
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run ends with its demo
    for words in NOISE:
        warnings.filterwarnings("ignore", words)

    from d2kd.data import register_all
    from d2kd.data.demo import make_demo
    from d2kd.evaluation.figures import gap_sentence, table

    start = time.time()
    data = make_demo()
    register_all()
    train_all(args, output, digest((data / "made.json").read_bytes()))
    results, found, models = measure(output)
    sentence = gap_sentence(*(results[name]["AP"] for name in TITLES))
    draw(output / "demo.png", results, found, models["teacher"], sentence)
    device = next(models["teacher"].parameters()).device.type
    print(f"\n{table({TITLES[name]: row for name, row in results.items()})}\n")
    print("AP on demo_val by COCOEvaluator; a multiply-add counts as one flop, as in fvcore; "
          f"median time of single images on the {device}.")  # fmt: skip
    print(f"\n{sentence}\n\n  picture  {output / 'demo.png'}\n  figures  {output / 'results.json'}")
    print(f"  whole demo {clock(time.time() - start)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from the last checkpoint.")

"""The command line of the demo."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from d2kd.commands import add_debug
from d2kd.progress import format_time
from d2kd.tools.runs import NOISE, end_with_signals

from .train import CONFIGS, SHIPPED, START, TITLES, Failed, config_path, short_digest, train_all

DESCRIPTION = f"""\
Train a small student further, alone and with its teacher, and compare the two.

Both begin with the same student, which comes with d2kd ({START}). It has trained alone for 6,000
steps. Both then train for the same steps on the same images. So the demo shows what the teacher
adds to a student after a long training of its own.

Writes <output>/teacher, <output>/alone and <output>/distilled (the runs), results.json and
demo.png. The data are made once, in $DETECTRON2_DATASETS or ./datasets. A run that was interrupted
goes on from its last checkpoint. A finished run is not trained again unless its config, its data or
its teacher has changed. The teacher's weights come with d2kd ({SHIPPED}).
"""
EXAMPLES = """\
examples:
  d2kd demo
  d2kd demo --seed 2 --output output/seed2
"""
DATA = ("demo_train", "demo_val")
SHOWN = ("teacher", "alone", "distilled")  # in the picture
SPEED_IMAGES = 20  # validation images whose time is measured


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="d2kd demo",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/demo"),
        help="folder of all results; default: output/demo")  # fmt: skip
    add("--seed", type=int, help="seed of all trainings; default: the seed in the configs")
    add("--max-iter", type=int, help="train for fewer iterations, for a quick look; use another "
        "--output with it")  # fmt: skip
    add("--fresh", action="store_true", help="train again what is finished")
    add("--train-teacher", action="store_true", help=f"train the teacher too, instead of taking "
        f"{SHIPPED}")  # fmt: skip
    add_debug(parser)
    return parser.parse_args(argv)


def measure(output: Path) -> tuple[dict, dict, dict]:
    """Evaluate the three detectors and write results.json.

    Returns:
        name -> figures, name -> detections by image id, name -> detector.
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

    teacher, student = (load_config(config_path(CONFIGS[name])) for name in ("teacher", "alone"))
    # The distilled student is a plain one: Detectron2 loads it into the student's own config.
    configs = {name: teacher if name == "teacher" else student for name in TITLES}
    models, results, detections = {}, {}, {}
    for name, cfg in configs.items():
        print(f"evaluating the {TITLES[name]} ...", flush=True)
        weights = config_path(START) if name == "start" else output / name / "model_final.pth"
        models[name] = load_plain(cfg, weights)
        results[name], detections[name] = measure_accuracy(cfg, models[name])
    test = student.dataloader.test
    mapper = instantiate(test.mapper)
    batches = [[mapper(record)] for record in instantiate(test.dataset)[:SPEED_IMAGES]]
    times = measure_speed(models, batches)
    for name, model in models.items():
        gflops = count_gflops(model, batches[0])
        results[name] |= dict(params=count_parameters(model), gflops=gflops, ms=times[name])
    write_json(output / "results.json", results)
    return results, detections, models


def draw(path: Path, results: dict, instances: dict, teacher, headline: str) -> None:
    """Write the picture.

    Args:
        results, instances: figures and detections of the three detectors, see `measure`.
        teacher: the detector whose attention is shown.
        headline: the line below the title.
    """
    from detectron2.config import instantiate
    from detectron2.data import MetadataCatalog

    from d2kd.config import load_config
    from d2kd.matching import Detections, GroundTruth, suppress_across_classes
    from d2kd.visualize import compose_sheet

    from .choose import best_threshold, choose_images
    from .pictures import View, distillation_columns

    test = load_config(config_path(CONFIGS["alone"])).dataloader.test
    records = {record["image_id"]: record for record in instantiate(test.dataset)}
    truths = {i: GroundTruth.from_record(record) for i, record in records.items()}
    views, shown = [], {}
    for name in SHOWN:
        boxes = {i: Detections.from_instances(instances[name][i]) for i in records}
        distinct = {i: suppress_across_classes(b) for i, b in boxes.items()}
        threshold = best_threshold(list(distinct.values()), list(truths.values()))
        shown[name] = {i: detections.above(threshold) for i, detections in distinct.items()}
        heading = f"{TITLES[name].capitalize()}: {results[name]['AP']:.1f} AP"
        size = f"{results[name]['params'] / 1e6:.2f} M parameters"
        views.append(View(heading, f"{size} · score ≥ {threshold:.2f}", shown[name]))
    chosen, rule = choose_images(truths, shown["alone"], shown["distilled"])
    mapper = instantiate(test.mapper)
    methods = load_config(config_path(CONFIGS["distilled"])).model.methods
    tau = next((m.tau for m in methods.values() if hasattr(m, "tau")), 0.5)
    columns = distillation_columns(
        views,
        teacher,
        {i: mapper(records[i]) for i in chosen},
        truths,
        MetadataCatalog.get(test.dataset.names).thing_classes,
        tau=tau,
    )
    compose_sheet(
        path,
        columns,
        title="A small detector learns from a larger one",
        subtitle=headline,
        caption=f"{rule} Where boxes overlap by more than half, the one with the highest score is "
        f"shown. The boxes of each detector are shown from the score on at which its F1 over the "
        f"validation set is highest. Attention and key regions (FGD's spatial attention and "
        f"foreground mask, at stride 4) say where the student should resemble the teacher. FGD "
        f"multiplies them, and a cell of a small object weighs more than a cell of a large one.",
    )


def demo(args: argparse.Namespace) -> None:
    from d2kd.data import register_all
    from d2kd.data.demo import make_demo
    from d2kd.evaluation.figures import gap_sentence, table

    start, output = time.time(), args.output
    data = make_demo(splits=DATA)
    register_all()
    made = json.loads((data / "made.json").read_text())["sha256"]
    train_all(args, output, short_digest("".join(made[split] for split in DATA).encode()))
    results, instances, models = measure(output)
    sentence = gap_sentence(*(results[name]["AP"] for name in SHOWN))
    draw(output / "demo.png", results, instances, models["teacher"], sentence)
    device = next(models["teacher"].parameters()).device.type
    print(f"\n{table({TITLES[name]: row for name, row in results.items()})}\n")
    print("AP on demo_val by COCOEvaluator; a multiply-add counts as one flop, as in fvcore; "
          f"median time of single images on the {device}.")  # fmt: skip
    print(f"\n{sentence}\n\n  picture  {output / 'demo.png'}\n  figures  {output / 'results.json'}")
    print(f"  whole demo {format_time(time.time() - start)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo in the current folder.

    Args:
        argv: the arguments. Default: the arguments of the process.

    Returns:
        exit status: 0; 1 if a training failed.

    Raises:
        KeyboardInterrupt: with how to go on.
    """
    args = parse_args(argv)
    for words in NOISE:
        warnings.filterwarnings("ignore", words)
    try:
        with end_with_signals():
            demo(args)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        stop.args = ("The same command goes on from the last checkpoint.",)
        raise
    return 0

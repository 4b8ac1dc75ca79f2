import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from d2kd import Distiller, Targets, Teacher
from d2kd.config import load_config
from d2kd.loading import without_weights
from d2kd.methods import FGD, PGD, MCDropout, Methods, Mimic, RankMimic
from d2kd.tools.benchmark import command as benchmark
from d2kd.tools.benchmark import costs, setting, stopwatch
from tests import toys

ROOT = Path(__file__).parents[2]

CONFIG = """
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from d2kd import Distiller, Teacher
from d2kd.methods import FGD, PGD, Methods
from tests import toys

student = L(toys.retinanet)(width=4)
model = L(Distiller)(
    student=student,
    teacher=L(Teacher)(model=L(toys.retinanet)(width=8), weights="not/there.pth"),
    methods=L(Methods)(fgd=L(FGD)(levels=["p3", "p4"]), pgd=L(PGD)(on="neck")),
)
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"), lr=1e-3, weight_decay=0.05
)
dataloader = dict(train=dict(total_batch_size=1))
train = model_zoo.get_config("common/train.py").train
train.device = "cpu"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def samples(name: str, *seconds: float, boxes: int = 0, scene: str = "s") -> dict:
    memory = dict(peak_bytes=[], kept_bytes=[])
    return dict(scene=scene, boxes=boxes, name=name, seconds={"step": [*seconds]}, **memory)


def teaching(**methods) -> Distiller:
    """A distiller of toys; the one method, if none is given, is plain mimicking."""
    return Distiller(
        student=toys.retinanet(),
        teacher=Teacher(toys.retinanet(width=8), None),
        methods=Methods(**(methods or dict(mimic=Mimic()))),
    )


# The clock.


def test_each_round_begins_with_another_turn():
    seen = []
    turns = [
        stopwatch.Turn("s", 0, name, {"a": lambda _, name=name: seen.append(name)})
        for name in "xyz"
    ]
    rounds = stopwatch.take_turns(turns, rounds=3, warm_up=1)
    assert rounds == 3 and "".join(seen) == "xyz" + "yzx" + "zxy" + "xyz" + "xyz"
    # Neither those of the warm-up count, nor the last round, which is for memory.
    assert [len(t.seconds["a"]) for t in turns] == [3, 3, 3]
    assert [len(t.peak) for t in turns] == [1, 1, 1]


def test_phases_pass_their_values_on_and_are_timed_apart(monkeypatch):
    now = iter([1.0, 3.0, 8.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(now))
    tidied = []
    phases = {"forward": lambda _: 5, "backward": tidied.append}
    turn = stopwatch.Turn("s", 0, "m", phases, tidy=lambda: tidied.append("tidy"))
    turn.take(torch.device("cpu"), keep=True)
    assert turn.seconds == {"forward": [2.0], "backward": [5.0]} and turn.peak == []
    assert tidied == [5, "tidy"]


def test_gpu_times_and_memory(monkeypatch):
    calls, clock = [], iter([10.0, 12.0, 17.0])  # milliseconds

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append("event")
            self.at = next(clock)

        def elapsed_time(self, end):
            return end.at - self.at

    for name, value in dict(
        Event=Event,
        synchronize=lambda: calls.append("wait"),
        reset_peak_memory_stats=lambda: None,
        memory_allocated=iter([100, 170]).__next__,
        max_memory_allocated=lambda: 350,
    ).items():
        monkeypatch.setattr(torch.cuda, name, value)
    turn = stopwatch.Turn("s", 0, "m", {"forward": calls.append, "backward": calls.append})
    turn.take(torch.device("cuda"), keep=True)
    assert turn.seconds == {"forward": [0.002], "backward": [0.005]}
    assert turn.peak == [250] and turn.kept == [70]
    # It waits before and after, not between: a phase overlaps with the launching of the next.
    assert calls == ["wait", "event", None, "event", None, "event", "wait"]


def test_memory_on_a_cpu():
    def forward(_):
        large = torch.ones(1000)
        return large.sum() + torch.ones(500)  # the sum is 4 bytes

    turn = stopwatch.Turn("s", 0, "m", {"forward": forward})
    turn.weigh()
    size = torch.ones(1).untyped_storage().nbytes()
    assert turn.peak == [1501 * size + 500 * size] and turn.kept == [500 * size]
    assert not turn.seconds


def test_the_limit_ends_after_a_round_that_counts():
    calls = []
    turn = stopwatch.Turn("s", 0, "m", {"a": calls.append})
    assert stopwatch.take_turns([turn], rounds=9, warm_up=2, minutes=0) == 1
    assert len(calls) == 3 + 1  # one more for memory


@pytest.mark.parametrize("device, expected", [("cpu", 3), ("cuda", 4)])
def test_no_round_begins_that_would_end_late(device, expected, monkeypatch):
    # A minute a round, five in all: on a CPU the last one is for memory.
    clock = iter(range(0, 9999, 60))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(stopwatch.Turn, "take", lambda *args, **fields: None)
    turn = stopwatch.Turn("s", 0, "m", {})
    assert stopwatch.take_turns([turn], rounds=9, warm_up=1, minutes=5, device=device) == expected


# What samples say.


def test_ratios_are_those_of_each_round():
    # The ratio of the medians would be 4 / 1.
    records = [samples("m", 1.0, 4.0, 90.0), samples("e", 1.0, 1.0, 30.0)]
    (found,) = stopwatch.Ratio("m / e", {"m": 1}, ["e"]).records(records)
    assert found["median"] == 3.0 and (found["low"], found["high"]) == (2.0, 3.5)


def test_a_ratio_sums_and_subtracts():
    totals = dict(on=[5.0, 7.0], off=[3.0, 6.0], a=[1.0, 2.0], b=[3.0, 8.0])
    assert stopwatch.Ratio("", {"on": 1, "off": -1}, ["a", "b"]).of(totals) == [0.5, 0.1]


def test_ratios_only_where_all_of_it_was_measured():
    records = [samples("m", 2.0), samples("m", 6.0, boxes=9), samples("e", 3.0, boxes=9)]
    found = list(stopwatch.Ratio("m / e", {"m": 1}, ["e"]).records(records))
    assert [(r["boxes"], r["median"]) for r in found] == [(9, 2.0)]


def test_a_table_for_each_scene_and_a_column_for_each_number_of_boxes():
    few = samples("m", 0.001, 0.002, 0.003)
    many = dict(samples("m", 0.1, boxes=500), peak_bytes=[2**20, 3 * 2**20])
    other = samples("m", 0.004, scene="t")
    ratio = dict(scene="s", boxes=500, name="m / e", median=1.5, low=1.0, high=2.0)
    text = stopwatch.table(
        dict(measurements=[few, many, other], ratios=[ratio], notes=["How to read it."])
    )
    first, second, note = text.split("\n\n")
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in first.splitlines()]
    assert cells[0] == ["s", "0 boxes", "500 boxes"]
    assert cells[2] == ["m, ms", "2.00 (1.50 to 2.50)", "100.0 (100.0 to 100.0)"]
    assert cells[3:] == [["m, MiB", "", "3"], ["ratio: m / e", "", "1.50 (1.00 to 2.00)"]]
    assert "4.00" in second and "500 boxes" not in second and note == "How to read it."


def test_what_the_ratios_of_a_distiller_are():
    values = {  # seconds, peak and kept bytes
        "student step": (4.0, 60, 9),
        "teacher features": (1.0, 50, 20),
        "distilled step": (6.0, 88, 9),
        "distilled step with UET": (8.0, 96, 9),
        "mimic": (0.5, 1, 1),
        "mimic with UET": (0.9, 1, 1),
        "squared error of features p3 p4 p5 p6 p7": (0.25, 1, 1),
    }
    records = [
        dict(samples(name, seconds), peak_bytes=[peak], kept_bytes=[kept])
        for name, (seconds, peak, kept) in values.items()
    ]
    found = [x for ratio in costs.ratios(teaching()) for x in ratio.records(records)]
    parts, stay = "(student step + teacher features)", "(student step + teacher features that stay)"
    assert {x["name"]: round(x["median"], 9) for x in found} == {
        f"distilled step / {parts}": 1.2,
        "distilled step / student step": 1.5,
        f"memory: distilled step / {stay}": 1.1,
        f"memory: distilled step with UET / {stay}": 1.2,
        "distilled step with UET / without": round(4 / 3, 9),
        "UET's share of the distilled step with it": 0.05,
        "mimic / squared error of features p3 p4 p5 p6 p7": 2.0,
        "mimic with UET / squared error of features p3 p4 p5 p6 p7": 3.6,
    }


# What is measured.


def test_whole_run(config, tmp_path, capsys):
    output = tmp_path / "bench"
    options = ["--sizes", "64", "--boxes", "0", "3", "--batch", "1", "--rounds", "2"]
    argv = ["--config-file", str(config), "train.seed=3", *options, "--output", str(output)]
    benchmark.main([*argv, "--warm-up", "0"])
    results = json.loads((output / "results.json").read_text())
    text = (output / "results.md").read_text()
    assert text == stopwatch.table(results) + "\n" and text in capsys.readouterr().out
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(output.iterdir())) == 3  # nothing half written
    features = "squared error of features"
    references = [f"{features} p3 p4", f"{features} p3 p4 p5 p6 p7"]
    steps = ["student step", "teacher features", "distilled step", "distilled step with UET"]
    methods = ["fgd", "fgd with UET", "pgd", "pgd with UET"]
    for boxes in (0, 3):
        here = [m for m in results["measurements"] if m["boxes"] == boxes]
        assert [m["name"] for m in here] == [*steps, *methods, *references]
        assert {len(s) for m in here for s in m["seconds"].values()} == {2}
        assert {*here[4]["seconds"]} == {"forward", "backward"}
    names = [r["name"] for r in results["ratios"] if r["boxes"] == 3]
    assert names == [
        "distilled step / (student step + teacher features)",
        "distilled step / student step",
        "memory: distilled step / (student step + teacher features that stay)",
        "memory: distilled step with UET / (student step + teacher features that stay)",
        "distilled step with UET / without",
        "UET's share of the distilled step with it",
        f"fgd / {references[0]}",
        f"fgd with UET / {references[0]}",
        f"pgd / {references[1]}",
        f"pgd with UET / {references[1]}",
    ]
    assert results["machine"]["torch"] == torch.__version__ and results["rounds"] == 2
    assert "train.seed=3" in results["command"]


def test_a_detector_alone(config):
    cfg = load_config(str(config))
    cfg.model = cfg.student
    model = setting.build_model(cfg)
    trainers = setting.build_trainers(cfg, model)
    turns = list(costs.scene_turns(model, trainers, "s", (64, 64), [2], 1))
    assert [t.name for t in turns] == ["student step"] and not list(costs.ratios(model))


def test_turns_leave_no_trace(config):
    model = setting.build_model(cfg := load_config(str(config)))
    trainers = setting.build_trainers(cfg, model)
    turns = {t.name: t for t in costs.scene_turns(model, trainers, "s", (64, 64), [3], 1)}
    model.zero_grad()  # of the first forward pass there are none
    before = {name: p.clone() for name, p in model.named_parameters()}
    for turn in turns.values():
        turn.take(torch.device("cpu"), keep=True)
        for name, p in model.named_parameters():
            assert p.grad is None and torch.equal(p, before[name]), (turn.name, name)
    # Yet the steps were steps.
    assert trainers["distilled step"].optimizer.state[model.head.cls_score.weight]["step"] == 2
    assert trainers["student step"].optimizer.state[model.head.cls_score.weight]["step"] == 1


def test_uet_is_on_only_in_its_own_turns(config):
    model = setting.build_model(cfg := load_config(str(config)))
    trainers = setting.build_trainers(cfg, model)
    used = []
    for name, method in model.distillation.items():
        method.register_forward_pre_hook(
            lambda m, _, name=name: used.append((name, isinstance(m.uncertainty, MCDropout)))
        )
    turns = {t.name: t for t in costs.scene_turns(model, trainers, "s", (64, 64), [3], 1)}
    for turn, expected in {
        "distilled step with UET": [("fgd", True), ("pgd", True)],
        "distilled step": [("fgd", False), ("pgd", False)],
        "pgd with UET": [("pgd", True)],
        "pgd": [("pgd", False)],
    }.items():
        used.clear()
        turns[turn].take(torch.device("cpu"), keep=True)
        assert used == expected


@pytest.mark.parametrize("stage, names", [("off", " with UET"), ("on", " without UET")])
def test_modes_besides_the_configured_one(stage, names):
    uncertainty = MCDropout() if stage == "on" else None
    modes = costs.uet_modes(Methods(fgd=FGD(uncertainty=uncertainty), rank=RankMimic()))
    assert [*modes] == ["", names] and [*modes[""]] == ["fgd"]
    on = modes["" if stage == "on" else names]["fgd"]
    assert isinstance(on, MCDropout)


def test_mixed_uet_has_both_modes():
    dropout = MCDropout(rates=[0.5])
    modes = costs.uet_modes(Methods(a=FGD(uncertainty=dropout), b=FGD()))
    assert [*modes] == ["", " without UET", " with UET"]
    assert modes[" with UET"]["a"] is dropout and isinstance(modes[" with UET"]["b"], MCDropout)
    assert all(isinstance(stage, nn.Identity) for stage in modes[" without UET"].values())


def test_the_teacher_alone_does_what_the_distiller_asks(config, monkeypatch):
    model = setting.build_model(cfg := load_config(str(config)))
    trainers = setting.build_trainers(cfg, model)
    turns = {t.name: t for t in costs.scene_turns(model, trainers, "s", (64, 70), [3], 2)}
    asked = []
    call = Teacher.__call__
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, x, **kw: asked.append(kw) or call(self, x, **kw)
    )
    for name in ("distilled step", "teacher features"):
        turns[name].take(torch.device("cpu"), keep=True)
    assert asked[0] == asked[1] and asked[0]["padded_size"] == (64, 96)
    assert asked[0]["needs"] == {"features", "logits", "boxes"}  # PGD's


def test_methods_see_what_the_distiller_shows_them():
    model = teaching()
    batch = toys.batch()
    student, teacher = costs.record(model, batch)
    loss = model.distillation["mimic"](student, teacher, Targets.from_inputs(batch, "cpu"))["mse"]
    torch.testing.assert_close(loss, model(batch)["loss_distill_mimic"])
    loss.backward()
    assert student.features["p3"].grad is not None
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_reference_moves_the_maps_that_the_method_compares():
    model = teaching(few=Mimic(levels=["p5", "p6"]), towers=PGD())
    _, teacher = costs.record(model, toys.batch())
    found = costs._compared(model.distillation["few"], teacher)
    assert all(a is teacher.features[b] for a, b in zip(found, ("p5", "p6"), strict=True))
    found = costs._compared(model.distillation["towers"], teacher)
    maps = [x for name in ("cls_tower.1", "box_tower.1") for x in teacher.taps[name].values()]
    assert len(found) == 10 and all(a is b for a, b in zip(found, maps, strict=True))


# What it is measured on.


def test_random_boxes_lie_inside_and_do_not_change_the_images():
    detector = toys.retinanet()
    few, many = (setting.random_batch((48, 200), n, 2, detector) for n in (0, 300))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(few, many, strict=True))
    assert not torch.equal(few[0]["image"], few[1]["image"])
    truth = many[1]["instances"]
    boxes, sides = truth.gt_boxes.tensor, torch.tensor([200.0, 48.0])
    extent = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and (boxes[:, 2:] <= sides).all()
    assert extent.min() > 7.99 and (extent <= sides / 2 + 0.01).all()
    assert set(truth.gt_classes.tolist()) == {0, 1, 2} and len(few[0]["instances"]) == 0


def test_masks_for_detectors_that_learn_them():
    (x,) = setting.random_batch((64, 64), 2, 1, toys.rcnn(mask=True))
    outlines = x["instances"].gt_masks.get_bounding_boxes().tensor
    torch.testing.assert_close(outlines, x["instances"].gt_boxes.tensor)


def test_checkpoints_are_taken_out(config):
    cfg = LazyConfig.load(str(config))
    cfg.model.student.update(pretrained=True, box2box_transform=dict(weights=[1.0, 2.0]))
    without_weights(cfg.model)
    assert cfg.model.teacher.weights is None and cfg.model.student.pretrained is False
    assert cfg.model.student.box2box_transform.weights == [1.0, 2.0]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_norms_get_the_statistics_of_their_input(norm):
    detector = toys.retinanet(norm=norm).eval()
    inputs = toys.batch()
    setting.settle(detector, inputs)
    module = next(
        m for m in detector.modules() if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d))
    )
    out = []
    module.register_forward_hook(lambda _m, _a, y: out.append(y.clone()))  # a ReLU follows
    with torch.no_grad():
        detector.backbone(detector.preprocess_image(inputs).tensor)
    torch.testing.assert_close(out[0].mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[0].std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_maps_of_real_size_at_a_small_one():
    model = setting.large_maps(Methods(fgd=FGD(), pgd=PGD()))
    turns = list(costs.scene_turns(model, {}, "s", (64, 64), [2], 1))
    names = [t.name for t in turns]
    assert names[:4] == ["fgd", "fgd with UET", "pgd", "pgd with UET"]
    assert names[4:] == [f"squared error of {x} p3 p4 p5 p6 p7" for x in ("features", "towers")]
    assert {s.channels for s in model.teacher.reader.shapes.values()} == {256}


# Mistakes.


@pytest.mark.parametrize(
    "options, message",
    [
        (["--config-file", "c.py"], "expected --sizes or --real-size, found neither"),
        (["--config-file", "c.py", "--sizes", "1o0"], "as 128 or 800x1344, found '1o0'"),
        (["--config-file", "c.py", "--sizes", "9", "--boxes", "-1"], "at least 0, found -1"),
        (["--config-file", "c.py", "--sizes", "9", "--rounds", "0"], "at least 1, found 0"),
    ],
)
def test_options_that_cannot_be(options, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args([*options, "--output", "o"])
    assert message in capsys.readouterr().err


def test_sizes():
    assert benchmark.parse_size("800x1344") == (800, 1344) and benchmark.parse_size("9") == (9, 9)


def test_no_such_gpu(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(str(config), ["train.device=cuda"])
    with pytest.raises(ValueError, match=r"found 'cuda' but no GPU. Add train.device=cpu"):
        setting.build_model(cfg)


@pytest.mark.slow
def test_no_such_config(tmp_path):
    command = [sys.executable, "-m", "d2kd.tools.benchmark", "--config-file", "no.py"]
    command += ["--sizes", "9"]
    found = subprocess.run(
        [*command, "--output", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode and "Traceback" not in found.stderr and "no.py" in found.stderr

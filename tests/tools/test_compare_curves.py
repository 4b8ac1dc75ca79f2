"""AP over steps and over time: what metrics.json says, which rows are one curve, and warnings."""

import csv
import json

import cv2
import pytest

from d2kd.tools.compare import command
from d2kd.tools.compare.curves import group_rows
from d2kd.tools.compare.describe import Description
from d2kd.tools.compare.entries import Entry
from d2kd.tools.compare.evidence import warnings
from d2kd.tools.compare.history import History, history_of
from d2kd.tools.compare.picture_of_curves import Point, picture_of_curves, points_of, way_of
from d2kd.tools.compare.statistics import Gap
from tests.tools.tables import calls, cells, run_main


def trained(ap: float, steps: int, minutes: float = 1.0) -> dict[str, float]:
    return {"AP": ap, "steps": steps, "train min": minutes}


def losses(iteration: int, time: float | None = None, **others) -> dict:
    timed = {} if time is None else {"time": time}
    return {"iteration": iteration, "total_loss": 1.0, **timed, **others}


# ---- metrics.json


def test_steps_time_and_ap_by_hand():
    # 20 steps of 0.5 s, 20 of 1 s, 10 of 2 s: 50 steps in 50 s. The evaluation after 40 steps is in
    # a line with losses, and the last one has the number of steps as its iteration.
    lines = [losses(19, 0.5), losses(39, 1.0, **{"bbox/AP": 10.0}), losses(49, 2.0)]
    lines += [{"iteration": 50, "bbox/AP": 20.0}]
    assert history_of(lines) == History(50, 1.0, ((40, 10.0), (50, 20.0)))


def test_an_evaluation_between_two_lines_of_losses():
    # train.eval_period=21 and train.log_period=20: the evaluation after step 21, index 20.
    lines = [losses(19, 1.0), {"iteration": 20, "bbox/AP": 5.0}, losses(39, 1.0)]
    assert history_of(lines).points == ((21, 5.0),)


def test_steps_that_a_resumed_run_repeats_count_once():
    # Killed after 60 steps, the last 20 of 9 s. Resumed after step 40, where each takes 1 s.
    lines = [losses(19, 1.0), losses(39, 1.0), losses(59, 9.0, **{"bbox/AP": 1.0})]
    lines += [
        losses(59, 1.0, **{"bbox/AP": 7.0}),
        losses(79, 1.0),
        {"iteration": 80, "bbox/AP": 8.0},
    ]
    assert history_of(lines) == History(80, 1.0, ((60, 7.0), (80, 8.0)))


def test_a_run_that_is_resumed_for_its_last_evaluation_only():
    lines = [losses(19, 1.0), {"iteration": 20, "bbox/AP": 8.0}, {"iteration": 20, "bbox/AP": 8.5}]
    assert history_of(lines) == History(20, 1.0, ((20, 8.5),))


def test_lines_without_a_time_take_the_mean_of_the_others():
    # Detectron2 does not time the first two steps of a start. (3 + 5) / 2 = 4 s for all 4 steps.
    lines = [losses(0), losses(1), losses(2, 3.0), losses(3, 5.0)]
    assert history_of(lines)[:2] == (4, 4.0)
    assert history_of([losses(0)]) == History(1, None, ())
    assert history_of([{"bbox/AP": 3.0}, {"time": 1.0}]) == History()


def test_no_detections_are_an_ap_of_zero():
    lines = [losses(19, 1.0, **{"bbox/AP": float("nan")}), losses(39, 1.0)]
    assert history_of(lines).points == ((20, 0.0),)


# ---- which rows are one curve


def entry(name: str, *overrides: str, config: str = "c.py", teacher: bool = False) -> Entry:
    return Entry(name, config, overrides, is_teacher=teacher)


def test_rows_of_other_lengths_are_one_curve():
    rows = [
        entry("alone 2000", "train.max_iter=2000", "train.eval_period=1000"),
        entry("PFI, 1x", "w=1", "train.max_iter=2000", config="d.py"),
        entry("alone 4000", "train.max_iter=4000", "lr_multiplier.warmup_length=0.1"),
        entry("PFI, 2x", "w=1", "train.max_iter=4000", config="d.py"),
        entry("PFI w 2", "w=2", config="d.py"),
        entry("T", "train.max_iter=9", teacher=True),
    ]
    assert group_rows(rows) == {
        "alone": ["alone 2000", "alone 4000"],
        "PFI": ["PFI, 1x", "PFI, 2x"],
        "PFI w 2": ["PFI w 2"],
        "T": ["T"],
    }


def test_the_configs_own_length_is_one_of_them():
    rows = [entry("alone"), entry("alone 2x", "train.max_iter=4000"), entry("b", "x=1")]
    assert group_rows(rows) == {"alone": ["alone", "alone 2x"], "b": ["b"]}


def test_rows_of_the_same_length_are_two_curves():
    # They differ in their learning rates.
    rows = [
        entry(f"{name} {steps}", f"train.max_iter={steps}", f"lr_multiplier.x={name}")
        for steps in (10, 20)
        for name in ("a", "b")
    ]
    assert group_rows(rows) == {"a": ["a 10", "a 20"], "b": ["b 10", "b 20"]}


def test_names_that_share_no_word_or_are_taken():
    rows = [entry("short", "train.max_iter=1"), entry("long", "train.max_iter=2")]
    assert group_rows(rows) == {"short": ["short", "long"]}
    # "alone 2000" and "alone 2500" share a word, and not "alone 2".
    rows = [entry("alone 2000", "train.max_iter=1"), entry("alone 2500", "train.max_iter=2")]
    assert list(group_rows(rows)) == ["alone"]
    rows += [entry(f"alone b {i}", "b=1", f"train.max_iter={i}") for i in (1, 2)]
    rows += [entry(f"alone {i}", "c=1", f"train.max_iter={i}") for i in (1, 2)]
    assert list(group_rows(rows)) == ["alone", "alone b", "alone 1"]


# ---- warnings

CURVES = {"alone": ["alone 1x", "alone 2x"], "FGD": ["FGD"], "teacher": ["teacher"]}
GAPS = {"FGD": Gap("alone 2x", "teacher")}
AGAINST = {"alone 2x": "alone 1x", "FGD": "alone 2x"}


def words(one: list[float], two: list[float], teacher: float = 60.0, fgd: int = 200) -> list[str]:
    """Warnings of a comparison with a student alone after 100 and after 200 steps."""
    results = {
        "alone 1x": {seed: trained(ap, 100) for seed, ap in enumerate(one)},
        "alone 2x": {seed: trained(ap, 200) for seed, ap in enumerate(two)},
        "FGD": {0: trained(50.0, fgd)},
        "teacher": {None: {"AP": teacher}},
    }
    return warnings(results, GAPS, AGAINST, CURVES)


def test_nothing_is_said_of_a_converged_baseline_and_a_better_teacher():
    assert words([40.0, 42.0], [41.0, 43.0]) == []  # one AP more is converged
    assert words([41.0], [40.5]) == []


def test_a_baseline_that_still_gains_has_not_converged():
    (warning,) = words([40.0, 42.0], [45.0, 46.0])
    assert warning == (
        "'alone' has not converged: 41.0 ± 1.4 AP after 100 steps, 45.5 ± 0.7 after 200."
    )
    assert len(words([40.0], [41.1])) == 1


def test_a_gain_within_the_noise_of_seeds_is_none():
    # 2 AP more, and a standard deviation of 2.83 over two seeds.
    assert words([38.0, 42.0], [40.0, 44.0]) == []


def test_one_length_alone_says_how_to_check():
    results = {"alone": {1: trained(40.0, 600)}, "FGD": {1: trained(45.0, 600)}}
    results |= {"teacher": {None: {"AP": 60.0}}, "alone, 1.5x": {}}
    curves, gaps = {"alone": ["alone"], "FGD": ["FGD"]}, {"FGD": Gap("alone", "teacher")}
    (warning,) = warnings(results, gaps, {"FGD": "alone"}, curves)
    assert warning == (
        "whether 'alone' has converged was not checked: add an entry with train.max_iter=1200."
    )
    # It waits for a row that has not finished, and asks for twice the steps, not 1.5 times.
    curves["alone"] = ["alone", "alone, 1.5x"]
    assert warnings(results, gaps, {}, curves) == []
    results["alone, 1.5x"] = {1: trained(40.0, 900)}
    (warning,) = warnings(results, gaps, {}, curves)
    assert warning.endswith("add an entry with train.max_iter=1800.")
    # Without a distilled row and a teacher there is no baseline.
    assert warnings(results, {}, {}, curves, alone=["alone", "alone, 1.5x"]) == []


def alone_and_teacher(one: float, two: float, teacher: float) -> list[str]:
    """Warnings of a comparison in which no row is distilled."""
    results = {"alone": {1: trained(one, 100)}, "alone 2x": {1: trained(two, 200)}}
    results |= {"big": {None: {"AP": teacher}}}
    curves = {"alone": ["alone", "alone 2x"], "big": ["big"]}
    return warnings(results, {}, {}, curves, ["alone", "alone 2x"], ["big"])


def test_students_alone_are_checked_where_no_row_is_distilled():
    assert alone_and_teacher(40.0, 41.0, 60.0) == []
    (warning,) = alone_and_teacher(40.0, 45.0, 60.0)
    assert warning == "'alone' has not converged: 40.0 AP after 100 steps, 45.0 after 200."
    results = {"alone": {1: trained(40.0, 100)}, "alone 2x": {1: trained(45.0, 200)}}
    curves = {"alone": ["alone", "alone 2x"]}
    assert warnings(results, {}, {}, curves, ["alone", "alone 2x"]) == [warning]


def test_a_teacher_is_checked_where_no_row_is_distilled():
    (warning,) = alone_and_teacher(54.0, 54.5, 58.0)
    assert warning == (
        "there is little to distill: teacher 'big' 58.0 AP, student alone 'alone 2x' 54.5."
    )
    (warning,) = alone_and_teacher(5.0, 5.4, 0.0)
    assert warning.startswith("'alone 2x' reaches its teacher 'big' without distillation")


def test_a_teacher_that_is_hardly_better_is_named():
    (warning,) = words([54.5], [54.0], teacher=58.0)
    assert warning == (
        "there is little to distill: teacher 'teacher' 58.0 AP, student alone 'alone 1x' 54.5."
    )
    assert words([54.5], [54.0], teacher=59.5) == []
    # The student that FGD is compared with does not reach its teacher, but the other one does.
    (warning,) = words([54.5], [53.6], teacher=54.0)
    assert warning.startswith("there is little to distill: teacher 'teacher' 54.0 AP")
    # Here it does, and the warning that there is no gap says it.
    (warning,) = words([54.0], [54.5], teacher=53.5)
    assert "'alone 2x' reaches its teacher 'teacher' without distillation" in warning


def test_rows_of_unequal_lengths_are_named():
    (warning,) = words([40.0], [40.0], fgd=3000)
    assert warning == "unequal lengths are compared: 'FGD' (3,000 steps, 'alone 2x' 200)."


def test_a_baseline_below_the_best_one_is_named():
    results = {
        "alone": {1: trained(20.0, 100)},
        "alone 4x": {1: trained(40.0, 400)},
        "alone 8x": {1: trained(40.5, 800)},
        "FGD": {1: trained(30.0, 100)},
        "teacher": {None: {"AP": 60.0}},
    }
    curves = {"alone": ["alone", "alone 4x", "alone 8x"], "FGD": ["FGD"]}
    (warning,) = warnings(results, {"FGD": Gap("alone", "teacher")}, {"FGD": "alone"}, curves)
    assert warning == (
        "no row is compared with the best student alone, 'alone 8x' (40.5 AP; 'alone' 20.0)."
    )
    gaps = {"FGD": Gap("alone 4x", "teacher")}
    assert warnings(results, gaps, {}, curves) == []


# ---- the picture


def test_points_of_a_curve_by_hand():
    results = {
        "b": {1: trained(30.0, 200, 4.0), 2: trained(32.0, 200, 6.0)},
        "a": {1: trained(20.0, 100, 2.0)},
        "no steps": {1: {"AP": 3.0}},
        "unfinished": {},
    }
    found = points_of(results, ["b", "a", "no steps", "unfinished"])
    assert found == [
        Point(100, 2.0, 20.0, 0.0),
        Point(200, 5.0, 31.0, pytest.approx(2**0.5)),
    ]


def test_the_way_is_the_mean_over_seeds_where_all_were_evaluated():
    one = History(30, 1.0, ((10, 2.0), (20, 4.0), (30, 9.0)))
    two = History(30, 1.0, ((10, 4.0), (30, 10.0)))
    assert way_of([one, two, History()]) == [(10, 3.0), (30, 9.5)]
    assert way_of([]) == []


def test_the_picture_is_drawn_while_a_row_of_a_curve_has_no_result():
    results = {"alone": {1: {"AP": 3.0, "steps": 7}, 2: {"AP": 4.0, "steps": 7}}}
    assert picture_of_curves(results, {"alone": ["alone", "alone 2x"]}, {}, {})


def test_the_picture_is_drawn_for_trainings_of_known_length_only():
    assert picture_of_curves({"a": {1: {"AP": 3.0}}}, {"a": ["a"]}, {}, {}) is None
    results = {"_$a": {1: {"AP": 3.0, "steps": 7}}, "teacher": {None: {"AP": 5.0}}}
    gaps = {"_$a": Gap("x", "teacher")}
    image = picture_of_curves(results, {"_$a": ["_$a"], "teacher": ["teacher"]}, {}, gaps)
    assert image is not None and image.startswith(b"\x89PNG")


# ---- the command


def test_a_comparison_has_steps_minutes_curves_and_warnings(root, capsys):
    args = ["alone: c.py", "FGD: d.py scale=3", "--seeds", "1", "2"]
    assert run_main(root, *args) == 0
    text = (root / "out/results.md").read_text()
    # The times of its three steps are 9, 1 and 3 s: 13 s are 0.2167 minutes.
    assert cells(text, "alone")["steps"] == "3" and cells(text, "alone")["train min"] == "0.217"
    assert cells(text, "teacher")["steps"] == ""
    with open(root / "out/results.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["steps"] == "3" and float(first["train min"]) == pytest.approx(13 / 60)
    words = "Warning: whether 'alone' has converged was not checked: add an entry with"
    assert words in text and words in capsys.readouterr().out
    assert cv2.imread(str(root / "out/curves.png")).shape[1] == 1650
    # A row of an earlier call is in the curves too, and its figures outlive its folder.
    before = (root / "out/results.csv").read_text()
    run_main(root, "FGD: d.py scale=3", "--seeds", "1")
    assert (root / "out/results.csv").read_text() == before


def test_long_trainings_are_written_without_exponents(root):
    from d2kd.tools.compare.table import table

    text = table({"a": {1: trained(1.0, 90000, 1234.5)}}, {}, [1])
    found = cells(text, "a")
    assert (found["steps"], found["train min"]) == ("90,000", "1,234")


def test_a_comparison_without_distillation_warns_of_student_and_teacher(root):
    # The students have 11 and 51 AP, the teacher 40.
    rows = ["alone: c.py", "alone 2x: c.py train.max_iter=6 scale=5"]
    rows += ["big (teacher): c.py train.init_checkpoint=big.pth"]
    run_main(root, *rows, "--seeds", "1")
    text = " ".join((root / "out/results.md").read_text().split())
    assert "'alone 2x' reaches its teacher 'big' without distillation" in text


# ---- mistakes in entries


def test_a_mistake_in_any_entry_is_found_before_the_first_run(root, monkeypatch):
    def describe(entries, seed, todo):
        return [Description(3), Description(problem="override x: expected y")]

    monkeypatch.setattr(command, "describe", describe)
    with pytest.raises(ValueError, match=r"nothing was trained.*\n  b: c\.py x=1: override x: exp"):
        run_main(root, "a: c.py", "b: c.py x=1", "--seeds", "1")
    assert not calls(root) and not (root / "out").exists()
    # The table of what is there can still be shown.
    assert run_main(root, "a: c.py", "b: c.py x=1", "--seeds", "1", "--table-only") == 0


def test_a_run_that_failed_before_its_first_step_does_not_block_other_settings(root):
    assert run_main(root, "a: c.py fail=1", "b: c.py", "--seeds", "1") == 1
    assert run_main(root, "a: c.py scale=2", "b: c.py", "--seeds", "1") == 0
    assert cells((root / "out/results.md").read_text(), "a")["AP"] == "21.0"
    note = json.loads((root / "out/a/seed1/run.json").read_text())
    assert note["settings"] == ["c.py", "scale=2", "train.seed=1"]


@pytest.mark.parametrize("left", ["model_0000009.pth", "metrics.json"])
def test_a_run_that_has_begun_blocks_other_settings(root, left):
    run_main(root, "a: c.py fail=1", "--seeds", "1")
    (root / "out/a/seed1" / left).write_text('{"iteration": 9}')
    with pytest.raises(ValueError, match=r"expected a run of c\.py scale=2 train\.seed=1, found"):
        run_main(root, "a: c.py scale=2", "--seeds", "1")


def test_a_teacher_whose_evaluation_failed_can_be_another_one(root):
    teacher = "big (teacher): c.py train.init_checkpoint={}"
    train = (root / "train_net.py").read_text()
    (root / "train_net.py").write_text("import sys; sys.exit('no such file')")
    assert run_main(root, teacher.format("x.pth"), "--seeds", "1") == 1
    (root / "train_net.py").write_text(train)
    assert run_main(root, teacher.format("y.pth"), "--seeds", "1") == 0

"""The command as a user runs it, on a few images and with toy teachers."""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from d2kd.checkpoint import Checkpointer
from d2kd.pseudo import coco
from d2kd.tools import label as pseudo_label
from tests import toys
from tests.pseudo import pictures

ROOT = Path(__file__).parents[2]

CONFIG = """
from detectron2.config import LazyCall as L
from d2kd.pseudo.thresholds import FBetaThresholds, FixedThresholds
from d2kd.pseudo.fuse import Fusion
from d2kd.pseudo.teachers import LabelTeacher
from tests import toys

labels = dict(
    images=dict(folder="{folder}/images"),
    classes=["ant", "bee", "cat"],
    teachers=dict(
        big=L(LabelTeacher)(
            model=L(toys.retinanet)(),
            weights="{folder}/one.pth",
            classes=["ant", "bee", "cat"],
            min_size_test=96,
            score_floor=0.3,
            max_detections=12,
        ),
        small=L(LabelTeacher)(
            model=L(toys.retinanet)(num_classes=2),
            weights="{folder}/two.pth",
            classes=["kitten", "insect"],
            categories={{"kitten": "cat", "insect": None}},
            input_format="RGB",
            min_size_test=0,
            score_floor=0.3,
            max_detections=12,
            thresholds=L(FixedThresholds)(high=0.5, low=0.45),
        ),
    ),
    thresholds=L(FixedThresholds)(high=0.6, low=0.5),
    fusion=L(Fusion)(),
    output="{folder}/labels",
    unit_size=4,
    max_rejected=0.1,
    num_workers=0,
    samples=0,
)
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(pseudo_label, "setup_logger", lambda **_: None)  # pytest's own is better
    pictures.folder(tmp_path / "images", 11)
    (tmp_path / "images" / "03.png").write_bytes(b"no image")
    Checkpointer(pictures.detector(), str(tmp_path)).save("one")
    Checkpointer(pictures.detector(num_classes=2), str(tmp_path)).save("two")
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def run(place: Path, *opts: str, **flags) -> dict:
    """Run the command; what it wrote."""
    defaults = dict(config_file=str(place / "config.py"), opts=list(opts))
    defaults |= dict(dry_run=False, verify=False, overwrite=False)
    pseudo_label.run(argparse.Namespace(**{**defaults, **flags}))
    path = place / "labels" / "labels.json"
    return json.loads(path.read_text()) if path.exists() else {}


def raw(place: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted((place / "labels" / "raw").rglob("unit_*"))}


def test_two_teachers_label_a_folder(place):
    found = run(place, "labels.samples=2")
    assert len(found["images"]) <= 10
    assert "03.png" not in {image["file_name"] for image in found["images"]}
    heights = {i["file_name"]: (i["height"], i["width"]) for i in found["images"]}
    assert heights["05.png"] == pictures.SIZES[1]
    by = {tuple(a["teachers"]) for a in found["annotations"]}
    assert by >= {("big",), ("small",)}
    names = {c["id"]: c["name"] for c in found["categories"]}
    small = {names[a["category_id"]] for a in found["annotations"] if "small" in a["teachers"]}
    assert small == {"cat"}
    said = json.loads((place / "labels" / "provenance.json").read_text())
    assert said["made_from"]["thresholds"]["small"]["high"] == [0.5] * 3
    assert said["rejected"][0][0].endswith("03.png")
    assert len(said["parents"]) == 6
    assert {f.name for f in (place / "labels").glob("*.*")} >= {
        "labels.json",
        "provenance.json",
        "report.json",
        "report.md",
        "samples.png",
    }
    assert coco.verify(place / "labels" / "labels.json") == []


def test_report_counts_what_was_not_labeled(place):
    for name in ("a.gif", "b.GIF", "c.txt"):
        (place / "images" / name).write_text("no image by its suffix")
    (place / "images" / "empty.png").write_bytes(b"")
    deep = np.full((96, 96), 3000, np.uint16)  # Pillow would read it as all white
    Image.fromarray(deep).save(place / "images" / "deep.png")
    run(place, "labels.max_rejected=0.3")
    counts = json.loads((place / "labels" / "report.json").read_text())["left_out"]
    assert counts == {
        "the file is empty": 1,
        "the file cannot be read": 2,  # 03.png and deep.png
        "no image by its suffix: .gif": 2,
        "no image by its suffix: .txt": 1,
    }
    text = (place / "labels" / "report.md").read_text()
    assert "Files that could not be labeled: " in text and "2 (the file cannot be read)" in text
    said = json.loads((place / "labels" / "provenance.json").read_text())
    (reason,) = [why for file, why in said["rejected"] if file.endswith("deep.png")]
    assert "expected 8 bits a channel, found mode I" in reason  # "I;16" by newer Pillow
    assert said["run"]["other_files"] == {".gif": 2, ".txt": 1}


def test_truth_with_boxes_that_are_no_numbers_stops_before_labeling(place):
    content = dict(
        images=[dict(id=1, file_name="00.png", width=96, height=96)],
        categories=[dict(id=1, name="ant")],
        annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, float("nan"), 9, 9])],
    )
    (place / "truth.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"truth\.json: expected finite numbers, found 1 of 1"):
        run(place, f"labels.truth={place}/truth.json")
    assert not raw(place)


def test_second_run_writes_the_same_and_labels_nothing(place, monkeypatch):
    run(place)
    before, path = raw(place), place / "labels" / "labels.json"
    labels = path.read_bytes()
    monkeypatch.setattr("d2kd.pseudo.teachers.LabelTeacher.__call__", None)
    run(place)
    assert (raw(place), path.read_bytes()) == (before, labels)


def test_other_thresholds_use_raw_predictions_again_and_overwrite_only_when_told(
    place, monkeypatch
):
    before = run(place)
    unchanged = raw(place)
    monkeypatch.setattr("d2kd.pseudo.teachers.LabelTeacher.__call__", None)
    with pytest.raises(ValueError, match=r"made with other settings.*add --overwrite"):
        run(place, "labels.thresholds.high=0.95")
    after = run(place, "labels.thresholds.high=0.95", overwrite=True)
    assert raw(place) == unchanged
    objects = [sum(not a["iscrowd"] for a in x["annotations"]) for x in (before, after)]
    assert objects[0] > objects[1]


def test_labels_of_an_older_format_are_replaced_only_when_told(place, monkeypatch):
    run(place)
    unchanged = raw(place)
    for file in (ROOT / "tests" / "fixtures" / "pseudo_format_1").iterdir():
        shutil.copy(file, place / "labels")
    monkeypatch.setattr("d2kd.pseudo.teachers.LabelTeacher.__call__", None)
    with pytest.raises(ValueError, match=r"has format 2, found .*labels\.json of format 1: its.*"):
        run(place)
    said = json.loads((place / "labels" / "provenance.json").read_text())
    assert said["schema"] == 1
    found = run(place, overwrite=True)
    assert found["info"]["schema"] == 2 and raw(place) == unchanged


def test_provenance_names_the_rules(place):
    """If this fails because a class has moved, raise d2kd.pseudo.provenance.SCHEMA with it."""
    run(place)
    made_from = json.loads((place / "labels" / "provenance.json").read_text())["made_from"]
    assert made_from.keys() == {"teachers", "settings", "manifest", "thresholds"}
    settings = made_from["settings"]
    assert settings["thresholds"] == [
        ["d2kd.pseudo.thresholds.FixedThresholds", {"high": 0.6, "low": 0.5}],
        ["d2kd.pseudo.thresholds.FixedThresholds", {"high": 0.5, "low": 0.45}],
    ]
    assert settings["fusion"][0] == "d2kd.pseudo.fuse.Fusion"
    assert [m[0] for m in settings["maps"]] == ["d2kd.pseudo.categories.CategoryMap"] * 2
    assert settings["classes"] == ["ant", "bee", "cat"]
    assert (settings["unit_size"], settings["seed"]) == (4, 0)


def test_other_floor_is_labeled_anew_beside_the_old(place):
    run(place)
    before = raw(place)
    with pytest.raises(ValueError, match="made with other teachers"):
        run(place, "labels.teachers.big.score_floor=0.4")
    run(place, "labels.teachers.big.score_floor=0.4", overwrite=True)
    assert raw(place).items() >= before.items()
    assert len(raw(place)) == len(before) * 3 // 2


def test_dry_run_says_how_long_it_takes_and_leaves_nothing(place, capsys):
    assert run(place, dry_run=True) == {}
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["big", "small"]
    for line in said:
        assert re.search(r"images per second, \d+\.\d\d of its speed without reading", line)
        assert "for all 11 in one process on this cpu" in line
        assert "1 of 11 images unreadable" in line
    assert not (place / "labels").exists()


def test_verify_finds_an_altered_unit(place, capsys):
    run(place)
    with pytest.raises(SystemExit) as end:
        run(place, verify=True)
    assert end.value.code == 0
    file = next((place / "labels" / "raw" / "small").rglob("unit_00001.npz"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit) as end:
        run(place, verify=True)
    assert end.value.code == 1
    assert "unit_00001.npz: its sha256 differs" in capsys.readouterr().out


@pytest.fixture
def labeled(place):
    path = toys.coco_dataset(place / "labeled", n=6, classes=3)
    text = json.loads(path[0].read_text())
    for category, name in zip(text["categories"], ["ant", "bee", "cat"], strict=True):
        category["name"] = name
    path[0].write_text(json.dumps(text))
    register_coco_instances("toy_labeled", {}, *map(str, path))
    yield "toy_labeled"
    DatasetCatalog.remove("toy_labeled")
    MetadataCatalog.remove("toy_labeled")


def fitted(place):
    """A config whose thresholds are fitted on labeled images."""
    path = place / "config.py"
    fixed, rule = "L(FixedThresholds)(high=0.6, low=0.5)", "L(FBetaThresholds)(iou=0.05, objects=1)"
    path.write_text(path.read_text().replace(fixed, rule))


def test_thresholds_are_fitted_on_labeled_images_that_the_teachers_label_too(place, labeled):
    fitted(place)
    with pytest.raises(ValueError, match=r"Set labels\.fit\.dataset"):
        run(place)
    run(place, f"labels.fit.dataset={labeled}", "labels.fit.images=5")
    said = json.loads((place / "labels" / "provenance.json").read_text())["made_from"]
    assert said["thresholds"]["small"]["high"] == [0.5] * 3  # its own
    assert len(set(said["thresholds"]["big"]["high"])) > 1
    assert len({Path(f).parent for f in raw(place)}) == 4
    # The report compares how much is labeled with those images.
    report = json.loads((place / "labels" / "report.json").read_text())
    assert report["reference"]["source"] == labeled


def test_report_compares_with_the_truth(place, labeled):
    images = ["labels.images.folder=null", f"labels.images.dataset={labeled}"]
    run(place, *images, f"labels.truth={labeled}")
    report = json.loads((place / "labels" / "report.json").read_text())
    assert report["truth"]["images"] > 0
    found = json.loads((place / "labels" / "labels.json").read_text())
    assert {image["id"] for image in found["images"]} <= set(range(6))


def test_threshold_below_the_floor_is_told(place, caplog):
    with caplog.at_level(logging.WARNING):
        run(place, "labels.thresholds.low=0.1")
    said = "big: its lowest threshold is 0.100, but boxes that score less than score_floor=0.3"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.threshold=0.5", r"unknown are \['threshold'\]"),
        ("labels.output=null", r"missing are \['output \(folder"),
        ("labels.images.dataset=demo_train", r"labels\.images: expected dict\(dataset=NAME\) or"),
        ("labels.images.path=x", r"labels\.images: expected dict\(dataset=NAME\) or"),
        ("labels.images.folder=/nowhere", "expected a folder, found none at /nowhere"),
        ("labels.teachers.big.classes=[ant, bee]", "the names of its 3 classes, found 2"),
        ("labels.teachers.big.score_floor=1.5", "expected a number >= 0 and < 1, found 1.5"),
        ("labels.classes=[ant, bee, dog]", "the teacher's classes are not the student's"),
        ("labels.unit_size=0", "unit_size: expected a whole number >= 1, found 0"),
        ("labels.max_rejected=0", r"at most 0\.00% of 11 images to be unreadable"),
    ],
)
def test_mistakes_are_named(place, override, message):
    with pytest.raises(ValueError, match=message):
        run(place, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.truth=toy_lbelled", r"truth: expected a dataset registered .*'toy_lbelled'"),
        ("labels.truth=gone.json", r"truth: expected a COCO file, found none at gone\.json"),
        ("labels.truth=toy_labeled", r"toy_labeled: expected true boxes of the images that are"),
        ("labels.fit.dataset=toy_lbelled", r"labels\.fit\.dataset: expected a dataset registered"),
        ("labels.fit.datset=toy_labeled", r"labels\.fit: expected dict\(dataset=NAME, images="),
        (
            "labels.fit.dataset=toy_two",
            r"of all classes that teachers know, found that 'toy_two' .* \['cat'\]",
        ),
        (
            "labels.thresholds=fixed",
            r"labels\.thresholds: expected L\(FixedThresholds\)\(\.\.\.\) or .*, found 'fix",
        ),
        (
            "labels.thresholds.high=50",
            r"thresholds: expected 0 <= low <= high <= 1, found low 0\.5 and high 50",
        ),
        ("labels.thresholds.high=[0.6,0.6]", r"thresholds: expected 3 values for high, .* found 2"),
        ("labels.fusion=nms", r"labels\.fusion: expected L\(Fusion\)\(\.\.\.\), found"),
        (
            "labels.fusion.classes=[bee, ant, cat]",
            r"fusion\.classes: expected the student's, \['ant",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_labeled(
    place, labeled, override, message, monkeypatch
):
    path = place / "two.json"
    content = json.loads((place / "labeled" / "annotations.json").read_text())
    content["categories"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    path.write_text(json.dumps(content))
    register_coco_instances("toy_two", {}, str(path), str(place / "labeled"))
    monkeypatch.setattr("d2kd.pseudo.pipeline.label_images", None)
    try:
        with pytest.raises(ValueError, match=message):
            run(place, override)
    finally:
        DatasetCatalog.remove("toy_two")
        MetadataCatalog.remove("toy_two")


def test_thresholds_that_need_truths_say_so_before_anything_is_labeled(place, monkeypatch):
    path = place / "config.py"
    text = path.read_text().replace("FBetaThresholds,", "DistributionThresholds,")
    path.write_text(
        text.replace("L(FixedThresholds)(high=0.6, low=0.5)", "L(DistributionThresholds)()")
    )
    monkeypatch.setattr("d2kd.pseudo.pipeline.label_images", None)
    with pytest.raises(
        ValueError, match=r"DistributionThresholds is fitted.* Set labels\.fit\.dataset"
    ):
        run(place)
    with pytest.raises(TypeError, match="not callable"):  # `label`: nothing was amiss
        run(place, "labels.thresholds.objects_per_image=2")


def test_output_that_cannot_be_written_is_named(place):
    with pytest.raises(PermissionError, match="expected a folder that can be written"):
        run(place, f"labels.output={place}/one.pth")


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_write_what_one_does(place, torchrun):
    run(place)
    path = place / "labels" / "labels.json"
    before = raw(place), path.read_bytes()
    shutil.rmtree(place / "labels")
    command = [sys.executable, "-W", "ignore"]
    if torchrun:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "d2kd.tools.label", "--config-file", str(place / "config.py")]
    path_of = {"PYTHONPATH": str(ROOT)}
    command += [] if torchrun else ["--num-gpus", "2"]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **path_of})
    assert (raw(place), path.read_bytes()) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.num_workers=-1", "labels.num_workers: expected a whole number >= 0, found -1"),
        ("labels.max_rejected=2", "labels.max_rejected: expected a number >= 0 and <= 1, found 2"),
        ("labels.seed=x", "labels.seed: expected a whole number >= 0"),
        ("labels.teachers.big.batch_size=two", "teachers.big.batch_size: expected a whole number"),
        ("labels.teachers.big.min_size=3", "labels.teachers.big.min_size: .* mean min_size_test"),
        ("labels.fusion.iou=high", "labels.fusion.iou: expected a finite number, found 'high'"),
        ("labels.teachers=3", "labels.teachers: expected dict"),
        ("labels=3", "expected a section `labels` with fields, found 3"),
        ("lables.unit_size=3", "override 'lables.unit_size=3': .*Did you mean labels"),
        ("labels.unit_size", "override 'labels.unit_size': expected FIELD=VALUE"),
    ],
)
def test_names_and_kinds_are_checked(place, override, message):
    with pytest.raises(ValueError, match=message):
        run(place, override)
    assert not (place / "labels" / "labels.json").exists()


def test_the_config_may_stand_alone_and_options_after_overrides(place, capsys):
    config = str(place / "config.py")
    assert pseudo_label.main([config, "labels.unit_size=5", "--dry-run"]) == 0
    assert "images per second" in capsys.readouterr().out
    assert not (place / "labels").exists()


def test_configs_that_come_with_d2kd_are_found_by_name(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(pseudo_label, "launch", lambda run, args: given.append(args.config_file))
    monkeypatch.chdir(tmp_path)
    pseudo_label.main(["--config-file", "experiments/pseudo/labels_fog.py"])
    assert (
        Path(given[0]).read_text()
        == (ROOT / "configs/experiments/pseudo/labels_fog.py").read_text()
    )
    with pytest.raises(FileNotFoundError, match="labels_fog"):
        pseudo_label.main(["experiments/pseudo/label_fog.py"])

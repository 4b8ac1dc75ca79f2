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

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2kd.checkpoint import Checkpointer
from d2kd.pseudo import coco
from d2kd.tools import label as pseudo_label
from tests import toys
from tests.pseudo import pictures

ROOT = Path(__file__).parents[2]

CONFIG = """
from detectron2.config import LazyCall as L
from d2kd.pseudo.thresholds import FBetaBars, FixedBars
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
            bars=L(FixedBars)(high=0.5, low=0.45),
        ),
    ),
    bars=L(FixedBars)(high=0.6, low=0.5),
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
    assert said["made_from"]["bars"]["small"]["high"] == [0.5] * 3
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


def test_second_run_writes_the_same_and_labels_nothing(place, monkeypatch):
    run(place)
    before, path = raw(place), place / "labels" / "labels.json"
    labels = path.read_bytes()
    monkeypatch.setattr("d2kd.pseudo.teachers.LabelTeacher.__call__", None)
    run(place)
    assert (raw(place), path.read_bytes()) == (before, labels)


def test_other_bars_use_raw_predictions_again_and_overwrite_only_when_told(place, monkeypatch):
    before = run(place)
    unchanged = raw(place)
    monkeypatch.setattr("d2kd.pseudo.teachers.LabelTeacher.__call__", None)
    with pytest.raises(ValueError, match=r"made with other settings.*add --overwrite"):
        run(place, "labels.bars.high=0.95")
    after = run(place, "labels.bars.high=0.95", overwrite=True)
    assert raw(place) == unchanged
    objects = [sum(not a["iscrowd"] for a in x["annotations"]) for x in (before, after)]
    assert objects[0] > objects[1]


def test_other_floor_is_labelled_anew_beside_the_old(place):
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
        assert re.search(r"images a second, \d+\.\d\d of what it does without reading", line)
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
def labelled(place):
    path = toys.coco_dataset(place / "labelled", n=6, classes=3)
    text = json.loads(path[0].read_text())
    for category, name in zip(text["categories"], ["ant", "bee", "cat"], strict=True):
        category["name"] = name
    path[0].write_text(json.dumps(text))
    register_coco_instances("toy_labelled", {}, *map(str, path))
    yield "toy_labelled"
    DatasetCatalog.remove("toy_labelled")
    MetadataCatalog.remove("toy_labelled")


def fitted(place):
    """A config whose bars are fitted on labelled images."""
    path = place / "config.py"
    bars = "bars=L(FBetaBars)(iou=0.05, objects=1)"
    path.write_text(path.read_text().replace("bars=L(FixedBars)(high=0.6, low=0.5)", bars))


def test_bars_are_fitted_on_labelled_images_that_the_teachers_label_too(place, labelled):
    fitted(place)
    with pytest.raises(ValueError, match=r"Set labels\.fit\.dataset"):
        run(place)
    run(place, f"labels.fit.dataset={labelled}", "labels.fit.images=5")
    said = json.loads((place / "labels" / "provenance.json").read_text())["made_from"]
    assert said["bars"]["small"]["high"] == [0.5] * 3  # its own
    assert len(set(said["bars"]["big"]["high"])) > 1
    assert len({Path(f).parent for f in raw(place)}) == 4
    # The report compares how much is labelled with those images.
    report = json.loads((place / "labels" / "report.json").read_text())
    assert report["reference"]["source"] == labelled


def test_report_compares_with_the_truth(place, labelled):
    images = ["labels.images.folder=null", f"labels.images.dataset={labelled}"]
    run(place, *images, f"labels.truth={labelled}")
    report = json.loads((place / "labels" / "report.json").read_text())
    assert report["truth"]["images"] > 0
    found = json.loads((place / "labels" / "labels.json").read_text())
    assert {image["id"] for image in found["images"]} <= set(range(6))


def test_bar_below_the_floor_is_told(place, caplog):
    with caplog.at_level(logging.WARNING):
        run(place, "labels.bars.low=0.1")
    assert "big: its lowest bar is 0.100, but what scores less than score_floor=0.3" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.bar=0.5", r"unknown are \['bar'\]"),
        ("labels.output=null", r"missing are \['output \(folder"),
        ("labels.images.dataset=demo_train", r"labels\.images: expected dict\(dataset=NAME\) or"),
        ("labels.images.path=x", r"labels\.images: expected dict\(dataset=NAME\) or"),
        ("labels.images.folder=/nowhere", "expected a folder, found none at /nowhere"),
        ("labels.teachers.big.classes=[ant, bee]", "the names of its 3 classes, found 2"),
        ("labels.teachers.big.score_floor=1.5", "0 <= score_floor < 1, found 1.5"),
        ("labels.classes=[ant, bee, dog]", "the teacher's classes are not the student's"),
        ("labels.unit_size=0", "unit_size: expected at least 1, found 0"),
        ("labels.max_rejected=0", r"at most 0\.00% of 11 images to be unreadable"),
    ],
)
def test_mistakes_are_named(place, override, message):
    with pytest.raises(ValueError, match=message):
        run(place, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.truth=toy_lbelled", r"truth: expected a data set registered .*'toy_lbelled'"),
        ("labels.truth=gone.json", r"truth: expected a COCO file, found none at gone\.json"),
        ("labels.truth=toy_labelled", r"toy_labelled: expected true boxes of the images that are"),
        ("labels.fit.dataset=toy_lbelled", r"labels\.fit\.dataset: expected a dataset registered"),
        ("labels.fit.datset=toy_labelled", r"labels\.fit: expected dict\(dataset=NAME, images="),
        (
            "labels.fit.dataset=toy_two",
            r"of all classes that teachers know, 'toy_two' .* \['cat'\]",
        ),
        (
            "labels.bars=fixed",
            r"labels\.bars: expected L\(FixedBars\)\(\.\.\.\) or such, found 'fix",
        ),
        (
            "labels.bars.high=50",
            r"bars: expected 0 <= low <= high <= 1, found low 0\.5 and high 50",
        ),
        ("labels.bars.high=[0.6,0.6]", r"bars: expected 3 values for high, .* found 2"),
        ("labels.fusion=nms", r"labels\.fusion: expected L\(Fusion\)\(\.\.\.\) or such"),
        (
            "labels.fusion.classes=[bee, ant, cat]",
            r"fusion\.classes: expected the student's, \['ant",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_labelled(
    place, labelled, override, message, monkeypatch
):
    path = place / "two.json"
    content = json.loads((place / "labelled" / "annotations.json").read_text())
    content["categories"].pop()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 3]
    path.write_text(json.dumps(content))
    register_coco_instances("toy_two", {}, str(path), str(place / "labelled"))
    monkeypatch.setattr("d2kd.pseudo.job.label", None)
    try:
        with pytest.raises(ValueError, match=message):
            run(place, override)
    finally:
        DatasetCatalog.remove("toy_two")
        MetadataCatalog.remove("toy_two")


def test_bars_that_need_truths_say_so_before_anything_is_labelled(place, monkeypatch):
    path = place / "config.py"
    text = path.read_text().replace("FBetaBars,", "DistributionBars,")
    path.write_text(
        text.replace("bars=L(FixedBars)(high=0.6, low=0.5)", "bars=L(DistributionBars)()")
    )
    monkeypatch.setattr("d2kd.pseudo.job.label", None)
    with pytest.raises(
        ValueError, match=r"DistributionBars are fitted .* Set labels\.fit\.dataset"
    ):
        run(place)
    with pytest.raises(TypeError, match="not callable"):  # `label`: nothing was amiss
        run(place, "labels.bars.objects_per_image=2")


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

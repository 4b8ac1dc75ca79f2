import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2kd.data.manifest import Image
from d2kd.pseudo import coco
from d2kd.pseudo.fuse import Labels
from d2kd.pseudo.provenance import digest

CLASSES = ["cat", "dog", "owl"]
PROVENANCE = {
    "teachers": {"big": {"sha256": "aa"}, "other": {"sha256": "bb"}},
    "settings": {"iou": 0.55},
    "manifest": "cc",
}


def labels(*rows):
    """Rows of x1, y1, x2, y2, class, score, ignore. Both teachers found boxes above 0.8."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 7)
    both = table[:, 5] > 0.8
    return Labels(
        boxes=table[:, :4],
        scores=table[:, 5],
        classes=table[:, 4].astype(int),
        votes=1 + both,
        teachers=np.stack([np.ones_like(both), both], 1),
        ignore=table[:, 6] > 0,
        weights=np.where(table[:, 6] > 0, np.float32(0), table[:, 5]),
    )


IMAGES = [Image(i, f"/data/{folder}/{i}.png", 60, 80) for i, folder in
          [(7, "b"), (3, "a"), (9, "a"), (4, "a"), (5, "a")]]  # fmt: skip
LABELS = {
    7: labels((1, 2, 11, 32, 1, 0.6, 0), (5, 5, 15, 15, 0, 0.9, 0), (0, 0, 40, 40, 2, 0.4, 1)),
    3: labels(),
    9: labels((0, 0, 30, 30, 0, 0.45, 1)),  # only a region to ignore: the image is left out
    4: labels((-3, 50, 20, 70.5, 2, 0.7, 0), (5, 5, 5.5, 15, 0, 0.9, 0)),
}
REJECTED = [("/data/a/5.png", "truncated")]


def write(folder, found=LABELS, **changes):
    path = Path(folder) / "labels.json"
    options = dict(images=IMAGES, rejected=REJECTED, classes=CLASSES, provenance=PROVENANCE)
    return path, coco.write_labels(path, labels=found, **(options | changes))


def load(path):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_reads_the_file(tmp_path):
    file = load(write(tmp_path)[0])
    assert [c["name"] for c in file.loadCats(file.getCatIds())] == CLASSES
    assert file.getImgIds() == [3, 4, 7]
    assert [i["file_name"] for i in file.dataset["images"]] == ["a/3.png", "a/4.png", "b/7.png"]
    assert [(i["height"], i["width"]) for i in file.dataset["images"]] == [(60, 80)] * 3
    assert file.dataset["info"]["image_root"] == "/data/"
    rows = file.loadAnns(file.getAnnIds(7))
    assert [r["bbox"] for r in rows] == [[5, 5, 10, 10], [1, 2, 10, 30], [0, 0, 40, 40]]
    assert [r["area"] for r in rows] == [100, 300, 1600]
    assert [(r["iscrowd"], r["pseudo_ignore"]) for r in rows] == [(0, 0), (0, 0), (1, 1)]
    assert [r["category_id"] for r in rows] == [1, 2, 3]
    assert [r["score"] for r in rows] == [0.9, 0.6, 0.4]
    assert [r["weight"] for r in rows] == [0.9, 0.6, 0]
    assert [(r["votes"], r["teachers"]) for r in rows][:2] == [(2, ["big", "other"]), (1, ["big"])]
    assert {r["source"] for r in rows} == {"pseudo"} and not any("ignore" in r for r in rows)
    assert file.getAnnIds(7, iscrowd=True) == [4]
    assert sorted(file.anns) == [1, 2, 3, 4]


def test_boxes_are_clipped_and_tiny_ones_dropped(tmp_path):
    path, provenance = write(tmp_path)
    file = load(path)
    (row,) = file.loadAnns(file.getAnnIds(4))  # one of two: the other is half a pixel wide
    assert (row["bbox"], row["area"]) == ([0, 50, 20, 10], 200)
    assert provenance["counts"]["dropped_boxes"] == 1


def test_an_image_with_tiny_boxes_only_is_not_background(tmp_path):
    # Something was found in the image, so it is not background. No box is left to learn from, so
    # the image is left out.
    sliver, region = (5, 5, 5.5, 15, 0, 0.9, 0), (0, 0, 30, 30, 0, 0.45, 1)
    found = LABELS | {3: labels(sliver), 4: labels(sliver, region)}
    path, provenance = write(tmp_path, found)
    assert load(path).getImgIds() == [7]
    assert provenance["counts"]["unsure_images"] == 3 and provenance["counts"]["empty_images"] == 0
    assert provenance["counts"]["dropped_boxes"] == 2
    assert coco.verify(path) == []


def test_detectron2_loads_the_file(tmp_path):
    path, _ = write(tmp_path)
    name = "pseudo_test_coco"
    plain = load_coco_json(str(path), "/data", name)
    assert MetadataCatalog.get(name).thing_classes == CLASSES
    MetadataCatalog.remove(name)
    assert [len(r["annotations"]) for r in plain] == [0, 1, 3]
    assert plain[2]["file_name"] == "/data/b/7.png" and plain[2]["image_id"] == 7
    assert [a["category_id"] for a in plain[2]["annotations"]] == [0, 1, 2]
    assert [a["iscrowd"] for a in plain[2]["annotations"]] == [0, 0, 1]
    assert "score" not in plain[2]["annotations"][0]
    full = load_coco_json(str(path), "/data", None, coco.EXTRA_KEYS)[2]["annotations"][0]
    assert (full["score"], full["votes"], full["teachers"]) == (0.9, 2, ["big", "other"])


def test_cocoeval_ignores_regions(tmp_path):
    file = load(write(tmp_path)[0])
    found = [{"image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 30], "score": 0.5},
             {"image_id": 7, "category_id": 3, "bbox": [10, 10, 9, 9], "score": 0.9},
             {"image_id": 7, "category_id": 3, "bbox": [1, 1, 8, 8], "score": 0.8}]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(file, file.loadRes(found), "bbox")
        evaluation.params.imgIds = [7]
        evaluation.evaluate()
    ignored = {e["category_id"]: e["dtIgnore"][0].tolist() for e in evaluation.evalImgs[:9:4] if e}
    assert ignored[2] == [False] and ignored[3] == [True, True]


def test_loading_gives_class_indices_and_annotated_classes(tmp_path):
    annotated = {3: np.array([True, False, True])}
    path, _ = write(tmp_path, annotated=annotated)
    assert [i.get("annotated_classes") for i in load(path).dataset["images"]] == [
        [1, 3],
        None,
        None,
    ]
    records = coco.load_pseudo_labels(path, "/elsewhere")
    assert [r.get("annotated_classes") for r in records] == [[0, 2], None, None]
    assert [a["category_id"] for a in records[2]["annotations"]] == [0, 1, 2]
    assert records[2]["annotations"][2]["pseudo_ignore"] == 1
    assert records[2]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert records[2]["file_name"] == "/elsewhere/b/7.png"
    assert coco.load_pseudo_labels(path)[0]["file_name"] == "/data/a/3.png"


def test_files_outside_of_the_root_keep_their_path(tmp_path):
    records = coco.load_pseudo_labels(write(tmp_path, image_root="/data/a")[0])
    assert [r["file_name"] for r in records] == ["/data/a/3.png", "/data/a/4.png", "/data/b/7.png"]


def test_boxes_come_before_regions(tmp_path):
    found = labels((0, 0, 9, 9, 0, 0.9, 1), (0, 0, 9, 9, 1, 0.5, 0), (0, 0, 9, 9, 2, 0.7, 0))
    file = load(write(tmp_path, LABELS | {3: found})[0])
    rows = file.loadAnns(file.getAnnIds(3))
    assert [(r["score"], r["iscrowd"]) for r in rows] == [(0.7, 0), (0.5, 0), (0.9, 1)]


def test_counts(tmp_path):
    counts = write(tmp_path)[1]["counts"]
    assert counts == {
        "images": 3, "empty_images": 1, "boxes": 3, "ignore_regions": 1,
        "classes": {"cat": {"boxes": 1, "ignore_regions": 0},
                    "dog": {"boxes": 1, "ignore_regions": 0},
                    "owl": {"boxes": 1, "ignore_regions": 1}},
        "boxes_per_image": {"0": 1, "1": 1, "2": 1},
        "asked_images": 5, "rejected_images": 1, "unsure_images": 1, "dropped_boxes": 1,
    }  # fmt: skip


def test_provenance(tmp_path):
    parent = tmp_path / "raw" / "unit.npz"
    parent.parent.mkdir()
    parent.write_bytes(b"unit")
    path, provenance = write(tmp_path, parents=[parent], run={"seconds": 3})
    assert json.loads((tmp_path / "provenance.json").read_text()) == provenance
    assert provenance["labels"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["parents"] == {"raw/unit.npz": hashlib.sha256(b"unit").hexdigest()}
    assert provenance["made_from"] == PROVENANCE
    assert provenance["rejected"] == [["/data/a/5.png", "truncated"]]
    run = provenance["run"]
    assert run["seconds"] == 3 and run["versions"]["numpy"] == np.__version__
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.json", "provenance.json", "raw"]


def test_bytes_do_not_depend_on_order_or_run(tmp_path):
    first, _ = write(tmp_path / "1")
    turned = LABELS[7]
    turned = Labels(**{name: getattr(turned, name)[::-1] for name in vars(turned)})
    shuffled = dict(reversed((LABELS | {7: turned}).items()))
    second, _ = write(tmp_path / "2", shuffled, images=IMAGES[::-1], run={"seconds": 9})
    assert first.read_bytes() == second.read_bytes()
    third, _ = write(tmp_path / "3", provenance=PROVENANCE | {"settings": {"iou": 0.6}})
    assert first.read_bytes() != third.read_bytes()


def test_labels_are_computed_one_image_at_a_time(tmp_path):
    requested = []

    class Lazy(Mapping):
        def __getitem__(self, key):
            requested.append(key)
            return LABELS[key]

        __iter__, __len__ = LABELS.__iter__, LABELS.__len__

        def __contains__(self, key):
            return key in LABELS

    assert write(tmp_path / "1", Lazy())[0].read_bytes() == write(tmp_path)[0].read_bytes()
    assert requested == [3, 4, 7, 9]


def test_verify_finds_every_changed_byte(tmp_path):
    path, _ = write(tmp_path)
    assert coco.verify(path) == []
    for file in (path, tmp_path / "provenance.json"):
        whole = file.read_bytes()
        for i in range(0, len(whole), 7):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            assert coco.verify(path), f"{file.name}, byte {i}"
        file.write_bytes(whole)
    assert coco.verify(path) == []


def test_verify_names_what_differs(tmp_path):
    parent = tmp_path / "unit.npz"
    parent.write_bytes(b"unit")
    path, _ = write(tmp_path, parents=[parent])
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 2
    path.write_text(json.dumps(content))
    parent.unlink()
    differs = coco.verify(path)
    assert [d.split(":")[0] for d in differs] == ["parent unit.npz", "labels.json", "classes"]
    with pytest.raises(ValueError, match=r"labels.json: expected the file that provenance.json"):
        coco.load_pseudo_labels(path)
    assert len(coco.load_pseudo_labels(path, check=False)) == 3

    write(tmp_path)
    (tmp_path / "provenance.json").unlink()
    assert "expected a provenance file" in coco.verify(path)[0]
    with pytest.raises(ValueError, match=r"or no provenance\.json"):
        coco.load_pseudo_labels(path)


def test_verify_finds_images_that_no_count_contains(tmp_path):
    path, provenance = write(tmp_path)
    provenance["counts"]["unsure_images"] = 0
    provenance["sha256"] = digest({k: v for k, v in provenance.items() if k != "sha256"})
    (tmp_path / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    assert coco.verify(path) == ["images: expected 5, which were asked for, found 4"]


def broken(**changes):
    return Labels(**(vars(LABELS[7]) | changes))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images=[*IMAGES, IMAGES[0]]), "6 images with 5 ids"),
        (dict(images=IMAGES[1:]), "labels of 1 other images"),
        (dict(classes=["cat", "dog", "cat"]), "3 classes with 2 names"),
        (dict(rejected=[]), r"image 5 \(/data/a/5.png\): expected labels"),
        (dict(provenance={"settings": {}}), "provenance: expected manifest, teachers"),
        (dict(annotated={7: np.array([True, True, False])}), r"annotated for, \[0, 1\], found"),
        (dict(found=LABELS | {7: broken(boxes=np.full((3, 4), np.nan))}), "expected finite boxes"),
        (dict(found=LABELS | {7: broken(scores=np.full(3, np.nan))}), r"scores in \[0, 1\]"),
        (dict(found=LABELS | {7: broken(classes=np.full(3, 3))}), r"found \[3\]"),
        (dict(found=LABELS | {7: broken(votes=np.ones(2))}), r"votes of shape \(3,\), found"),
        (dict(classes=CLASSES[:2]), r"annotated for, \[0, 1\], found"),
        (dict(images=[i if i.image_id != 3 else Image(3, "x", 0, 5)
                      for i in IMAGES]), "expected a height and a width of 1 pixel"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_and_the_old_file_stays(tmp_path, change, message):
    write(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **change)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_killed_writer_leaves_the_old_file(tmp_path, monkeypatch):
    path, _ = write(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, LABELS | {3: LABELS[7]})
    assert path.read_bytes() == before and coco.verify(path) == []


def test_no_images(tmp_path):
    path, provenance = write(tmp_path, {}, images=[], rejected=[])
    assert load(path).dataset["images"] == [] and provenance["counts"]["asked_images"] == 0
    assert coco.verify(path) == []


FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "pseudo_format_1"  # written by an older d2kd


def test_labels_of_format_1_are_read_and_verified(tmp_path):
    (record,) = coco.load_pseudo_labels(FORMAT_1 / "labels.json")
    assert (record["file_name"], record["image_id"]) == ("/data/a/3.png", 3)
    rows = [(a["bbox"], a["category_id"], a["pseudo_ignore"]) for a in record["annotations"]]
    assert rows == [([10, 10, 20, 30], 1, 0), ([0, 0, 20, 20], 0, 1)]
    assert coco.verify(FORMAT_1 / "labels.json") == []


def test_labels_of_a_newer_format_are_refused(tmp_path):
    path, _ = write(tmp_path)
    content = json.loads(path.read_text())
    assert content["info"]["schema"] == 2
    content["info"]["schema"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected labels of format 2 or older, found format 3"):
        coco.load_pseudo_labels(path, check=False)


def test_sigkill_leaves_the_old_file_and_the_next_writer_cleans_up(tmp_path):
    path, _ = write(tmp_path)
    before = path.read_bytes()
    code = f"""
import os, signal
from collections.abc import Mapping
from tests.pseudo import test_coco as t
class Killed(dict):
    def __getitem__(self, key):
        if key == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)
t.write({str(tmp_path)!r}, Killed(t.LABELS))
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == before and coco.verify(path) == []
    names = {p.name for p in tmp_path.iterdir()}
    assert len(names) == 3  # labels, provenance, and the temporary file of the killed process
    write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"labels.json", "provenance.json"}


def test_labels_are_replaced_before_their_provenance(tmp_path, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(Path(b).name), replace(a, b)))
    write(tmp_path)
    assert names == ["labels.json", "provenance.json"]

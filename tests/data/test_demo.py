"""The demo set: equal on all machines, separate digits, tight boxes, complete or absent."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from PIL import Image
from pycocotools.coco import COCO

from d2kd.data import demo, demo_images, register_all
from d2kd.plain_errors import describe_error

TINY = dict.fromkeys(demo.SPLITS, 6)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    demo.make_demo(path, TINY)
    return path


@pytest.fixture
def catalogs():
    """Restores Detectron2's catalogs after the test."""
    saved = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = saved


def run(code: str) -> subprocess.CompletedProcess:
    """Run code in a new process, in which the module is ``demo`` and PyTorch is not imported."""
    code = f"import sys\nfrom d2kd.data import demo\nassert 'torch' not in sys.modules\n{code}"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def read(root: Path, split: str) -> dict:
    return json.loads((root / "demo" / "annotations" / f"{split}.json").read_text())


def pixels(root: Path, split: str) -> list[np.ndarray]:
    files = sorted((root / "demo" / split).iterdir())
    return [np.asarray(Image.open(file)) for file in files]


def test_images_have_the_digest_of_other_machines(root):
    # The digest is over the first six images of every split. NumPy 1.26 with scikit-image 0.22, and
    # NumPy 2.4 with scikit-image 0.26, gave the same files, bit for bit.
    digest = hashlib.sha256()
    for split in demo.SPLITS:
        for image in pixels(root, split):
            digest.update(image.tobytes())
        for label in read(root, split).get("annotations", []):
            digest.update(repr((label["image_id"], label["category_id"], label["bbox"])).encode())
    assert digest.hexdigest()[:16] == "f8c67054f5d3369d"


def test_making_twice_gives_equal_bytes(root, tmp_path):
    again = demo.make_demo(tmp_path, TINY)
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file()]
    assert len(files) == 7 * 6 + 7 + 1
    for file in files:
        assert (again / file).read_bytes() == (root / "demo" / file).read_bytes(), file


def test_an_image_does_not_depend_on_the_others(root):
    for split in demo.SPLITS:
        image, _ = demo.draw(split, 5)
        assert np.array_equal(image, pixels(root, split)[5])


def test_no_digit_and_no_photo_pixel_is_in_both_pools():
    shown = {"train": set(), "val": set()}
    classes = demo_images.load_material()[1]
    for split, spec in demo.SPLITS.items():
        assert spec.pool == ("val" if split.endswith("_val") else "train")
        for index in range(40):
            labels = demo.draw(split, index)[1]
            shown[spec.pool] |= {label["digit"] for label in labels}
            assert all(classes[label["digit"]] + 1 == label["category_id"] for label in labels)
    assert not shown["train"] & shown["val"]
    assert min(len(shown["train"]), len(shown["val"])) > 200
    images = demo_images.load_material()[0]
    assert not {images[i].tobytes() for i in shown["train"]} & {
        images[i].tobytes() for i in shown["val"]
    }  # no sample exists twice under two numbers
    photos = demo_images.load_material()[2]
    for train, val in zip(photos["train"], photos["val"], strict=True):
        assert train.base is not None and not np.shares_memory(train, val)


def test_boxes_are_tight_around_the_ink(monkeypatch):
    """Draw each digit once more, alone, and find its ink by a loop over pixels."""
    calls = []
    render = demo_images.render_digit

    def spy(digit, *where):
        calls.append((digit, where))
        return render(digit, *where)

    monkeypatch.setattr(demo_images, "render_digit", spy)
    checked = 0
    for index in range(12):
        calls.clear()
        image, labels = demo.draw("demo_train", index)
        boxes = set()
        for digit, where in calls:
            cover, (rows, cols) = render(digit, *where)
            ink = [
                (y, x)
                for y in range(cover.shape[0])
                for x in range(cover.shape[1])
                if cover[y, x] >= 0.5
            ]
            top, left = min(y for y, _ in ink), min(x for _, x in ink)
            height, width = max(y for y, _ in ink) - top + 1, max(x for _, x in ink) - left + 1
            boxes.add((cols.start + left, rows.start + top, width, height))
        for label in labels:
            x, y, width, height = label["bbox"]
            assert tuple(label["bbox"]) in boxes
            assert 0 <= x < x + width <= image.shape[1] and 0 <= y < y + height <= image.shape[0]
            assert label["area"] == width * height and label["iscrowd"] == 0
            checked += 1
    assert checked > 20


def test_a_drawn_digit_is_where_it_should_be():
    """The ink is a bar in the left columns. A turn by 90 degrees moves it to the top."""
    digit = np.zeros((8, 8))
    digit[:, :2] = 1
    for angle, middle in ((0.0, (64, 64 - 12)), (np.pi / 2, (64 - 12, 64))):
        cover, (rows, cols) = demo_images.render_digit(digit, 32, angle, 64, 64)
        ys, xs = np.nonzero(cover >= 0.5)
        found = (ys.mean() + 0.5 + rows.start, xs.mean() + 0.5 + cols.start)
        assert np.allclose(found, middle, atol=1) and 200 < len(ys) < 330  # 32 x 8 = 256


def test_json_is_coco(root):
    for split, spec in demo.SPLITS.items():
        coco = COCO(str(root / "demo" / "annotations" / f"{split}.json"))
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list("0123456789")
        assert coco.getCatIds() == list(range(1, 11)) and len(coco.getImgIds()) == 6
        assert bool(coco.anns) == spec.labeled
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(root / "demo" / split / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"]) == (128, 128)
                assert file.mode == "RGB" and file.format == "PNG"
            labels = coco.imgToAnns[image["id"]]
            assert not spec.labeled or 1 <= len(labels) <= 6
    for split in ("demo_unlabeled", "demo_fog_train", "demo_night_train"):
        assert "annotations" not in read(root, split)


def test_splits_show_different_scenes(root):
    images = {image.tobytes() for split in demo.SPLITS for image in pixels(root, split)}
    assert len(images) == 6 * len(demo.SPLITS)


def test_fog_is_bright_and_flat_and_night_is_dark():
    rng = np.random.RandomState(0)
    scene = demo_images._background(rng, demo_images.load_material()[2]["train"]).clip(0, 255)
    foggy, dark = demo_images.fog(rng, scene), demo_images.night(rng, scene)
    assert foggy.std() < 0.8 * scene.std() and foggy.mean() > scene.mean()
    assert dark.mean() < 0.7 * scene.mean()

    def mean_of(statistic, split):
        return np.mean([statistic(demo.draw(split, index)[0]) for index in range(30)])

    for part in ("train", "val"):
        assert mean_of(np.std, f"demo_fog_{part}") < 0.8 * mean_of(np.std, f"demo_{part}")
        assert mean_of(np.mean, f"demo_fog_{part}") > 1.2 * mean_of(np.mean, f"demo_{part}")
        assert mean_of(np.mean, f"demo_night_{part}") < 0.6 * mean_of(np.mean, f"demo_{part}")


def test_made_again_only_for_other_sizes_or_another_recipe(tmp_path, monkeypatch):
    folder = demo.make_demo(tmp_path, {"demo_val": 2})
    stamp = (folder / "made.json").stat().st_mtime_ns
    assert demo.make_demo(tmp_path, splits=["demo_val"]) == folder
    assert demo.make_demo(tmp_path, {"demo_val": 2}) == folder
    assert (folder / "made.json").stat().st_mtime_ns == stamp
    for size in (3, 1):
        demo.make_demo(tmp_path, {"demo_val": size})
        assert len(list((folder / "demo_val").iterdir())) == size
    monkeypatch.setattr(demo, "RECIPE", demo.RECIPE + 1)
    made = json.loads((demo.make_demo(tmp_path, {"demo_val": 3}) / "made.json").read_text())
    assert made["recipe"] == demo.RECIPE
    assert sorted(os.listdir(tmp_path)) == [".demo.lock", "demo"]


def test_a_split_is_made_when_it_is_loaded_and_the_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setitem(demo.SPLITS, "demo_fog_val", demo.SPLITS["demo_fog_val"]._replace(size=2))
    demo.make_demo(tmp_path, {"demo_val": 1})
    assert len(demo.load_split(tmp_path, "demo_fog_val")) == 2
    made = json.loads((tmp_path / "demo" / "made.json").read_text())
    assert made["sizes"] == {"demo_val": 1, "demo_fog_val": 2}
    assert set(os.listdir(tmp_path / "demo")) == {*made["sizes"], "annotations", "made.json"}


def test_a_killed_run_leaves_nothing_that_looks_made(tmp_path):
    """The process ends by os._exit, without any cleanup, in the middle of the second split."""
    done = run(
        "import os; draw = demo.draw\n"
        "demo.draw = lambda split, i: os._exit(9) if split == 'demo_val' else draw(split, i)\n"
        f"demo.make_demo({str(tmp_path)!r}, {{'demo_train': 3, 'demo_val': 3}})"
    )
    assert done.returncode == 9, done.stderr
    made = tmp_path / "demo" / "made.json"
    assert json.loads(made.read_text())["sizes"] == {"demo_train": 3}
    first = tmp_path / "demo" / "demo_train" / "000000.png"
    stamp = first.stat().st_mtime_ns
    folder = demo.make_demo(tmp_path, {"demo_train": 3, "demo_val": 3})
    assert len(list((folder / "demo_val").iterdir())) == 3
    assert first.stat().st_mtime_ns == stamp  # what was complete is kept


def test_a_folder_that_d2kd_did_not_make_is_not_changed(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no made\.json"):
        demo.make_demo(tmp_path, {"demo_val": 1})
    assert os.listdir(tmp_path) == ["demo"] and os.listdir(tmp_path / "demo") == ["mine.txt"]


@pytest.mark.parametrize("older", [False, True])
def test_the_second_of_two_concurrent_makers_uses_the_set_of_the_first(
    tmp_path, monkeypatch, older
):
    if older:  # both find a set of another size, which is replaced
        demo.make_demo(tmp_path, {"demo_val": 1})
    draw, load_material, sizes = demo.draw, demo.load_material, {"demo_val": 2}
    both_began, drawn, results = threading.Barrier(2, timeout=30), [], []

    def began():
        both_began.wait()  # neither can be done before the other has found that there is no set
        return load_material()

    def count(split, index):
        drawn.append(index)
        return draw(split, index)

    monkeypatch.setattr(demo, "load_material", began)
    monkeypatch.setattr(demo, "draw", count)

    def make():
        results.append(demo.make_demo(tmp_path, sizes))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "demo"] * 2
    assert len(drawn) == 2
    assert sorted(os.listdir(tmp_path)) == [".demo.lock", "demo"]
    assert len(list((tmp_path / "demo" / "demo_val").iterdir())) == 2


def test_a_difference_from_the_recorded_digest_is_a_warning(tmp_path, monkeypatch, caplog):
    split = demo_images.Split(2, "0" * 16, pool="val")
    monkeypatch.setitem(demo.SPLITS, "demo_val", split)
    with caplog.at_level(logging.WARNING, logger=demo.logger.name):
        made = json.loads((demo.make_demo(tmp_path, {"demo_val": 2}) / "made.json").read_text())
    (message,) = (record.getMessage() for record in caplog.records)
    assert "demo_val" in message and "0" * 16 in message and made["sha256"]["demo_val"] in message
    caplog.clear()
    monkeypatch.setitem(demo.SPLITS, "demo_val", split._replace(sha256=made["sha256"]["demo_val"]))
    with caplog.at_level(logging.WARNING, logger=demo.logger.name):
        demo.make_demo(tmp_path / "again", {"demo_val": 2})
    assert not caplog.records


def test_missing_package_gives_one_plain_error(tmp_path, monkeypatch):
    demo_images.load_material.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match="found no skimage") as e:
        demo.make_demo(tmp_path / "data")
    assert describe_error(e.value) is not None  # no traceback for the user
    assert not (tmp_path / "data").exists()


def test_importing_loads_no_large_package():
    done = run("assert not {'skimage', 'sklearn', 'detectron2'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_registration(root, tmp_path, catalogs, monkeypatch):
    register_all(str(tmp_path))
    register_all(str(root))  # the last call counts
    register_all(str(root))
    assert set(demo.SPLITS) <= set(DatasetCatalog.list())
    dicts = get_detection_dataset_dicts("demo_train", filter_empty=True)
    assert len(dicts) == 6 and Path(dicts[0]["file_name"]).is_relative_to(root)
    truth = read(root, "demo_train")["annotations"]
    found = [(d["image_id"], a["category_id"] + 1, a["bbox"]) for d in dicts
             for a in d["annotations"]]  # fmt: skip
    assert found == [(t["image_id"], t["category_id"], t["bbox"]) for t in truth]
    unlabeled = get_detection_dataset_dicts("demo_unlabeled", filter_empty=False)
    assert len(unlabeled) == 6 and not any(d["annotations"] for d in unlabeled)
    metadata = MetadataCatalog.get("demo_val")
    assert metadata.thing_classes == list("0123456789") and metadata.evaluator_type == "coco"
    assert Path(metadata.json_file).exists() and Path(metadata.image_root).is_dir()
    register_all(str(tmp_path))
    assert Path(MetadataCatalog.get("demo_val").json_file).is_relative_to(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_all()
    assert Path(MetadataCatalog.get("demo_val").json_file).is_relative_to(root)


def test_labels_of_splits_without_labels_are_drawn_again(root, catalogs):
    register_all(str(root))

    def boxes(images):
        ordered = sorted(images, key=lambda d: d["image_id"])
        return [[(a["bbox"], a["category_id"]) for a in d["annotations"]] for d in ordered]

    assert boxes(demo.load_truth(root, "demo_val")) == boxes(DatasetCatalog.get("demo_val"))
    truth = DatasetCatalog.get("demo_fog_train_truth")
    assert len(truth) == len(DatasetCatalog.get("demo_fog_train"))
    assert all(d["annotations"] for d in truth)
    assert "demo_val_truth" not in DatasetCatalog.list()


def test_data_are_made_when_first_loaded(tmp_path, catalogs, monkeypatch):
    monkeypatch.setitem(demo.SPLITS, "demo_val", demo.SPLITS["demo_val"]._replace(size=2))
    register_all(str(tmp_path))
    assert not os.listdir(tmp_path)
    assert len(DatasetCatalog.get("demo_val")) == 2


def test_evaluator_finds_the_right_boxes(root, catalogs, tmp_path):
    """The labels, given as detections, have an AP of 100 in Detectron2's own evaluator."""
    import torch
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, BoxMode, Instances

    register_all(str(root))
    evaluator = COCOEvaluator("demo_val", tasks=("bbox",), output_dir=str(tmp_path))
    evaluator.reset()
    for image in DatasetCatalog.get("demo_val"):
        labels = image["annotations"]
        boxes = BoxMode.convert(
            torch.tensor([label["bbox"] for label in labels], dtype=torch.float32),
            BoxMode.XYWH_ABS, BoxMode.XYXY_ABS,
        )  # fmt: skip
        perfect = Instances(
            (128, 128),
            pred_boxes=Boxes(boxes),
            scores=torch.ones(len(labels)),
            pred_classes=torch.tensor([label["category_id"] for label in labels]),
        )
        evaluator.process([image], [{"instances": perfect}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)

import errno
import logging
import multiprocessing
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from PIL import Image as Picture

from d2kd.data.manifest import Image, Manifest
from d2kd.pseudo import label
from d2kd.pseudo.label import _batches, label_images, open_cache
from tests.pseudo import pictures
from tests.pseudo.ranks import parts


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with seventeen images of four sizes. The file of the tenth is truncated."""
    path = pictures.folder(tmp_path_factory.mktemp("images") / "all", 17)
    whole = (path / "09.png").read_bytes()
    (path / "09.png").write_bytes(whole[: len(whole) // 2])
    return path


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The cache of one process that was not interrupted."""
    manifest, teacher, cache = parts(images, tmp_path_factory.mktemp("whole"))
    label_images(manifest, teacher, cache, num_workers=0, max_rejected=0.1)
    return cache


def content(cache) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(cache.folder.iterdir())}


def run(made, **fields):
    return label_images(*made, **{"num_workers": 0, "max_rejected": 0.1, **fields})


def test_every_image_is_labeled_at_the_scale_of_its_file(images, whole):
    units = [whole.read(unit) for unit in range(4)]
    assert [list(u.sizes) for u in units] == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9],
        [11, 12, 13, 14, 15],
        [16, 17],
    ]
    manifest, teacher, _ = parts(images, whole.folder.parent)
    for unit in units:
        for image_id, found in unit.detections.items():
            height, width = unit.sizes[image_id]
            assert (height, width) == pictures.SIZES[(image_id - 1) % 4]
            assert len(found.scores) > 3
            # Detectron2's own test of the same file.
            record = dict(file_name=manifest.images[image_id - 1].file_name, image_id=image_id)
            resize = [T.ResizeShortestEdge(96, 1333)]
            mapped = DatasetMapper(False, augmentations=resize, image_format="BGR")(record)
            with torch.no_grad():
                (output,) = teacher.model([mapped])
            expected = output["instances"]
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
            np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=1e-3)


def test_corrupt_image_is_listed_and_skipped(whole, images, tmp_path, caplog):
    (reason,) = whole.read(1).rejected.items()
    assert reason[0] == 10
    assert str(images) not in reason[1]  # the reason does not depend on the folder
    with caplog.at_level(logging.WARNING):
        run(parts(images, tmp_path))
    assert f"{images}/09.png is left out: " in caplog.text


def test_too_many_corrupt_images_stop(images, tmp_path):
    made = parts(images, tmp_path)
    for _ in range(2):  # a second run stops, too
        with pytest.raises(
            ValueError, match=r"at most 5\.00% of 17 images .* found 1 \(\S+/09\.png: "
        ):
            run(made, max_rejected=0.05)
    assert run(made)["images"] > 0


def test_errors_of_the_system_stop_the_run_and_reject_no_file(images, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "input/output error")

    made = parts(images, tmp_path)
    monkeypatch.setattr("d2kd.pseudo.label.read_image", fails)
    with pytest.raises(OSError, match="input/output error"):
        run(made)
    monkeypatch.undo()
    assert run(made)["images"] == 17


def test_missing_files_count_as_corrupt_before_anything_is_labeled(images, tmp_path):
    made = parts(images, tmp_path)
    manifest = Manifest(
        "toy", made[0].images, (("a.png", "there is no such file"),) * 2, made[0].digest
    )
    with pytest.raises(ValueError, match=r"found 2 \(a\.png: there is no such file\)"):
        run((manifest, *made[1:]))
    assert made[2].missing(4) == [0, 1, 2, 3]


def test_second_run_does_nothing(images, whole, monkeypatch):
    before = content(whole)
    made = parts(images, whole.folder.parent)
    monkeypatch.setattr(type(made[1]), "__call__", None)
    assert run(made)["images"] == 0
    assert content(whole) == before


@pytest.mark.parametrize("unit", ["unit_00000", "unit_00002"])
def test_only_a_truncated_unit_is_labeled_again(images, whole, tmp_path, unit):
    made = parts(images, tmp_path)
    shutil.copytree(whole.folder, made[2].folder, dirs_exist_ok=True)
    file = made[2].folder / f"{unit}.npz"
    file.write_bytes(file.read_bytes()[:-100])
    assert run(made)["images"] == 5
    assert content(made[2]) == content(whole)


def test_interrupted_run_continues_with_the_unit_it_was_in(images, whole, tmp_path, monkeypatch):
    made = parts(images, tmp_path)
    call, calls = type(made[1]).__call__, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return call(self, *args)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(type(made[1]), "__call__", killed)
        run(made)
    assert made[2].missing(4) == [1, 2, 3]
    assert run(made)["images"] == 12
    assert content(made[2]) == content(whole)


@pytest.mark.parametrize(("num_workers", "threads"), [(2, 1), (0, 2)])
def test_labels_do_not_depend_on_workers_and_threads(images, whole, tmp_path, num_workers, threads):
    made, before = parts(images, tmp_path), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        run(made, num_workers=num_workers)
    finally:
        torch.set_num_threads(before)
    assert content(made[2]) == content(whole)


def processes(count: int, *args) -> list:
    """Start processes that label. They are forks, which need not import everything again."""
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=_label, args=args) for _ in range(count)]
    for process in started:
        process.start()
    return started


def _label(images: Path, cache: Path, seconds: float) -> None:
    torch.set_num_threads(1)
    run(parts(images, cache, seconds))


def test_killed_run_continues(images, whole, tmp_path):
    cache = parts(images, tmp_path)[2]
    (slow,) = processes(1, images, tmp_path, 0.2)
    try:
        while slow.is_alive() and not cache.marked(1):
            time.sleep(0.02)
        time.sleep(0.3)  # until it is in the next unit
        assert slow.is_alive()
    finally:
        slow.kill()  # -9
        slow.join()
    assert cache.missing(4) == [2, 3]
    assert run(parts(images, tmp_path))["images"] == 7
    assert content(cache) == content(whole)


@pytest.mark.parametrize("count", [2, 3])
def test_labels_do_not_depend_on_the_number_of_processes(images, whole, tmp_path, count):
    cache = parts(images, tmp_path)[2]
    started = processes(count, images, tmp_path, 0.05)
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * count
    assert content(cache) == content(whole)


def test_other_processes_label_the_unit_of_a_killed_process(images, whole, tmp_path):
    cache = parts(images, tmp_path)[2]
    (slow,) = processes(1, images, tmp_path, 60.0)
    while not (cache.folder / "claims").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    (other,) = processes(1, images, tmp_path, 0.0)
    while len(cache.missing(4)) > 1:
        time.sleep(0.05)
    other.join(0.3)
    assert other.is_alive()  # it waits for the unit that the slow process has claimed
    slow.kill()
    other.join()
    assert other.exitcode == 0
    assert content(cache) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_processes_of_detectron2_and_torchrun(images, whole, tmp_path, torchrun):
    command = [sys.executable, "-W", "ignore"]
    if torchrun:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.pseudo.ranks", str(images), str(tmp_path), "2"]
    subprocess.run(command, check=True)
    assert content(parts(images, tmp_path)[2]) == content(whole)


def test_images_are_turned_as_their_exif_data_say(tmp_path):
    path = pictures.folder(tmp_path / "images", 1, sizes=[(40, 64)])
    exif = Picture.Exif()
    exif[274] = 6  # 6: turn by 90 degrees clockwise to see it upright
    Picture.open(path / "00.png").save(path / "00.jpg", exif=exif)
    (path / "00.png").unlink()
    manifest, teacher, cache = parts(path, tmp_path / "cache")
    run((manifest, teacher, cache))
    unit = cache.read(0)
    assert unit.sizes == {1: (64, 40)}
    boxes = unit.detections[1].boxes
    assert boxes[:, 3].max() > 40 >= boxes[:, 2].max()


def test_image_of_another_size_than_its_dataset_says_is_rejected(tmp_path):
    path = pictures.folder(tmp_path / "images", 2)
    records = [
        dict(file_name=str(path / "00.png"), image_id=4, height=48, width=64),
        dict(file_name=str(path / "01.png"), image_id=9, height=48, width=64),
    ]
    DatasetCatalog.register("toy_sizes", lambda: records)
    try:
        manifest = Manifest.from_dataset("toy_sizes")
    finally:
        DatasetCatalog.remove("toy_sizes")
    teacher = parts(path, tmp_path / "other")[1]
    cache = open_cache(tmp_path / "cache", manifest, teacher, 5, "cpu")
    run((manifest, teacher, cache), max_rejected=0.5)
    unit = cache.read(0)
    assert list(unit.detections) == [4]
    reason = "SizeMismatchError: it is 48 by 64 pixels, the dataset says 64 by 48"
    assert unit.rejected == {9: reason}


def test_key_covers_images_units_and_teacher(images, tmp_path):
    manifest, teacher, cache = parts(images, tmp_path)
    keys = {
        cache.key,
        open_cache(tmp_path, manifest, teacher, 6, "cpu").key,
        open_cache(tmp_path, manifest.sample(16), teacher, 5, "cpu").key,
    }
    teacher.score_floor = 0.4
    keys.add(open_cache(tmp_path, manifest, teacher, 5, "cpu").key)
    assert len(keys) == 4
    assert cache.record.keys() == {"torch", "torchvision", "detectron2", "numpy", "device"}


def test_batches_hold_images_of_one_padded_size():
    sizes = [(64, 96), (60, 90), (96, 64), (33, 65), (64, 96), (65, 96), (64, 96)]
    items = [(Image(i, "", *s), torch.zeros(3, *s)) for i, s in enumerate(sizes)]
    batches = [[image.image_id for image, _ in b] for b in _batches(items, 3, 32)]
    assert batches == [[0, 1, 3], [2], [4, 6], [5]]


def test_number_of_waiting_images_is_limited():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield Image(i, "", 1, 1), torch.zeros(3, 1 + i, 1)

    given = 0
    for batch in _batches(items(), 2, 1):
        assert len(taken) - given <= 16
        given += len(batch)
    assert given == 100


@pytest.mark.parametrize(
    "given, cpus, processes, used",
    [(4, 2, 1, 2), (4, 8, 2, 4), (4, 8, 4, 2), (4, 1, 2, 1), (0, 8, 1, 0)],
)
def test_workers_of_all_processes_have_a_cpu_each(monkeypatch, given, cpus, processes, used):
    monkeypatch.setattr(label, "available_cpus", lambda: cpus)
    monkeypatch.setattr(label.comm, "get_local_size", lambda: processes)
    assert label._affordable(given) == used

import os
import shutil

import pytest
from detectron2.data import DatasetCatalog

from d2kd.data.manifest import Image, Manifest
from tests.pseudo import pictures


@pytest.fixture
def register():
    names = []

    def add(records, name="toy_manifest"):
        DatasetCatalog.register(name, lambda: records)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)


def records(path, ids, **fields):
    files = sorted(path.iterdir())
    return [dict(file_name=str(f), image_id=i, **fields) for f, i in zip(files, ids, strict=False)]


def test_folder_lists_images_below_it_in_path_order(tmp_path):
    pictures.folder(tmp_path / "b" / "c", 2)
    pictures.folder(tmp_path / "a", 1)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    shutil.copy(tmp_path / "a" / "00.png", tmp_path / ".cache" / "thumb.png")
    shutil.copy(tmp_path / "a" / "00.png", tmp_path / "UPPER.PNG")
    found = Manifest.from_folder(tmp_path)
    files = [os.path.relpath(image.file_name, tmp_path) for image in found]
    assert files == ["UPPER.PNG", "a/00.png", "b/c/00.png", "b/c/01.png"]
    assert [image.image_id for image in found] == [1, 2, 3, 4]
    assert (found.images[0].height, found.images[0].width) == (0, 0)  # not known yet
    assert found.rejected == ()
    assert found.left_out == ((".txt", 1),)


def test_folder_without_an_image_says_what_is_in_it(tmp_path):
    for name in ("a.gif", "b.gif", "notes"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(ValueError, match=r"found none, and .*2 \.gif"):
        Manifest.from_folder(tmp_path)


def test_no_image_is_opened(tmp_path, monkeypatch):
    pictures.folder(tmp_path / "a", 3)
    monkeypatch.setattr("PIL.Image.open", None)
    assert len(Manifest.from_folder(tmp_path)) == 3


def test_digest_covers_names_and_sizes_but_not_the_folder(tmp_path, register):
    pictures.folder(tmp_path / "a", 3)
    digest = Manifest.from_folder(tmp_path / "a").digest
    (tmp_path / "a").rename(tmp_path / "b")
    assert Manifest.from_folder(tmp_path / "b").digest == digest
    with open(tmp_path / "b" / "01.png", "ab") as f:
        f.write(b"more")
    longer = Manifest.from_folder(tmp_path / "b").digest
    (tmp_path / "b" / "01.png").rename(tmp_path / "b" / "011.png")
    assert len({digest, longer, Manifest.from_folder(tmp_path / "b").digest}) == 3


def test_dataset_is_sorted_by_id(tmp_path, register):
    path = pictures.folder(tmp_path / "a", 3)
    name = register(records(path, [30, 4, 17], height=48, width=64, annotations=[]))
    found = Manifest.from_dataset(name)
    files = ["01.png", "02.png", "00.png"]
    assert list(found) == [
        Image(i, str(path / f), 48, 64) for i, f in zip((4, 17, 30), files, strict=True)
    ]
    assert found.name == name


@pytest.mark.parametrize("ids", [(7, 7, 3), ("07", "7", "3")])
def test_images_with_equal_ids_are_numbered_again(tmp_path, register, ids):
    path = pictures.folder(tmp_path / "a", 3)
    found = Manifest.from_dataset(register(records(path, ids)))
    assert [image.image_id for image in found] == [1, 2, 3]
    assert len({image.file_name for image in found}) == 3


def test_images_whose_ids_are_no_numbers_are_numbered(tmp_path, register):
    path = pictures.folder(tmp_path / "a", 3)
    found = Manifest.from_dataset(register(records(path, ["dog", "cat", "bee"])))
    files = [(i.image_id, os.path.basename(i.file_name)) for i in found]
    assert files == [(1, "02.png"), (2, "01.png"), (3, "00.png")]


def test_missing_and_empty_files_are_rejected(tmp_path, register):
    path = pictures.folder(tmp_path / "a", 3)
    entries = records(path, [1, 2, 3])
    (path / "00.png").unlink()
    (path / "02.png").write_bytes(b"")
    found = Manifest.from_dataset(register(entries))
    assert [i.image_id for i in found] == [2]
    assert found.rejected == (
        (str(path / "00.png"), "there is no such file"),
        (str(path / "02.png"), "the file is empty"),
    )


def test_units_contain_each_image_once(tmp_path):
    found = Manifest.from_folder(pictures.folder(tmp_path / "a", 7))
    units = found.units(3)
    assert [len(u) for u in units] == [3, 3, 1]
    assert [i for u in units for i in u] == list(found)
    with pytest.raises(ValueError, match="unit_size: expected at least 1, found 0"):
        found.units(0)


def test_sample_is_the_same_for_a_seed_and_has_its_own_digest(tmp_path):
    found = Manifest.from_folder(pictures.folder(tmp_path / "a", 9))
    some = found.sample(4, seed=1)
    assert some == found.sample(4, seed=1)
    assert [i for i in found if i in some.images] == list(some.images)
    assert some.images != found.sample(4, seed=2).images
    assert len({m.digest for m in (found, some, found.sample(4, 2), found.sample(5, 1))}) == 4
    assert found.sample(9) is found


def test_wrong_sources_are_refused(tmp_path, register):
    with pytest.raises(ValueError, match="registered with Detectron2, found 'demo_trian'"):
        Manifest.from_dataset("demo_trian")
    with pytest.raises(ValueError, match=r"expected a folder, found none at .*/nowhere"):
        Manifest.from_folder(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"expected images to label .* found none"):
        Manifest.from_folder(tmp_path)
    gone = register([dict(file_name=str(tmp_path / "gone.jpg"), image_id=1)])
    with pytest.raises(ValueError, match=r"found .*gone\.jpg: there is no such file"):
        Manifest.from_dataset(gone)
    with pytest.raises(ValueError, match="expected images to label"):
        Manifest.from_dataset(register([], "toy_none"))
    with pytest.raises(ValueError, match="expected file_name and image_id"):
        Manifest.from_dataset(register([dict(file_name="a")], "toy_nameless"))

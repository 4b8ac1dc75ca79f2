"""`d2kd audit`: what it says of configs, registered sets and COCO files."""

import pytest

from d2kd import cli
from d2kd.data import register_folder
from tests.data.audit import sets


@pytest.fixture
def farm(tmp_path):
    """The folder of farm_train, which is fine, and of farm_val, with empty boxes."""
    sets.write(tmp_path, "farm", "train")
    sets.write(tmp_path, "farm", "val", sets.box(lambda x, y, w, h: [x, y, 0, h], 4), seed=7)
    register_folder(tmp_path / "farm")
    yield tmp_path / "farm"
    sets.remove("farm_train", "farm_val")


def audit(capsys, *argv) -> tuple[int, str]:
    status = cli.main(["audit", *map(str, argv)])
    return status, capsys.readouterr().out


def test_config(farm, capsys):
    names = ["dataloader.train.dataset.names=farm_train", "dataloader.test.dataset.names=farm_val"]
    status, output = audit(capsys, "configs/demo/student.py", *names, "model.num_classes=3")
    assert status == 0
    assert "farm_train  train         6" in output and "farm_val    test          6" in output
    assert "warning: farm_val: 3 of 12 boxes have a width or height of 0 or less" in output
    status, output = audit(capsys, "configs/demo/student.py", *names, "model.num_classes=2")
    assert status == 1 and "refused: model.num_classes: expected at least the 3" in output


def test_registered_set(farm, capsys):
    assert audit(capsys, "farm_train") == (0, audit(capsys, "farm_train")[1])
    assert "No defects." in audit(capsys, "farm_train")[1]


def test_file_with_and_without_its_images(farm, capsys):
    table, images = farm / "annotations" / "train.json", farm / "train"
    (images / "2.png").unlink()
    try:
        assert audit(capsys, table)[0] == 0
        status, output = audit(capsys, table, "--images", images)
    finally:
        sets.remove(str(table))
    assert status == 1 and "1 of 6 images that have no file" in output


def test_unknown_name_is_named(capsys):
    assert cli.main(["audit", "farm_trian"]) == 2
    assert "farm_trian" in capsys.readouterr().err


@pytest.mark.parametrize("images", [[], ["--images", "."]])
def test_missing_file_is_not_taken_for_one_without_defects(capsys, images):
    assert cli.main(["audit", "nowhere.json", *images]) == 2
    output, error = capsys.readouterr()
    assert "nowhere.json: expected a COCO file" in error and "No defects" not in output

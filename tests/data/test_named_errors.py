import pickle
from pathlib import Path

import pytest
from detectron2.data import DatasetMapper

from d2kd.data import register_folder
from d2kd.data.named_errors import NamedErrors
from d2kd.data.train_loader import TrainLoader
from tests.audit.test_run import config
from tests.data.audit import sets


def mapper(is_train=False) -> DatasetMapper:
    return DatasetMapper(is_train=is_train, augmentations=[], image_format="BGR")


def damage(path) -> None:
    """Take pixels out of the middle of a file. Its header and its end are whole."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + content[-12:])


def test_damaged_image_is_named(tmp_path):
    path = tmp_path / "broken.png"
    sets.draw(path)
    damage(path)
    with pytest.raises(ValueError, match=r"broken\.png: expected an image that can be read"):
        NamedErrors(mapper())(dict(file_name=str(path)))


def test_errors_that_name_the_file_and_mistakes_in_code_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        NamedErrors(mapper())(dict(file_name=str(tmp_path / "gone.png")))

    def wrong(image):
        return image["no such key"]

    with pytest.raises(KeyError):
        NamedErrors(wrong)(dict(file_name="a.png"))


def test_error_of_a_mapper_that_is_not_about_the_file_stays_as_it_is(tmp_path, caplog):
    sets.draw(tmp_path / "a.png")

    def wrong(image):
        raise ValueError("expected one thing, found another")

    with pytest.raises(ValueError, match=r"^expected one thing, found another$"):
        NamedErrors(wrong)(dict(file_name=str(tmp_path / "a.png")))
    assert "a.png, which can be read" in caplog.text


def test_damaged_segmentation_is_named(tmp_path):
    names = dict(file_name=str(tmp_path / "a.png"), sem_seg_file_name=str(tmp_path / "b.png"))
    for path in names.values():
        sets.draw(Path(path))
    damage(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: expected an image that can be read"):
        NamedErrors(mapper(is_train=True))(names)


def test_it_is_its_mapper_otherwise(tmp_path):
    sets.draw(tmp_path / "a.png")
    named = pickle.loads(pickle.dumps(NamedErrors(mapper())))
    assert named(dict(file_name=str(tmp_path / "a.png")))["image"].shape == (3, 64, 64)
    assert named.image_format == "BGR" and not named.is_train


@pytest.mark.parametrize("workers", [0, 1])
def test_training_names_the_image_that_it_cannot_read(tmp_path, workers):
    def save(path):
        sets.draw(path)
        damage(path)

    sets.write(tmp_path, "broken", "train", save=save)
    register_folder(tmp_path / "broken")
    try:
        cfg = config(
            "dataloader.train.total_batch_size=2",
            f"dataloader.train.num_workers={workers}",
            train="broken_train",
            test="broken_train",
        )
        with pytest.raises(ValueError, match=r"broken/train/\d\.png: expected an image"):
            next(iter(TrainLoader(cfg.dataloader.train)(0, 0)))
    finally:
        sets.remove("broken_train")

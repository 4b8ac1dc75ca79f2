"""Which files of the given paths are images."""

import pytest

from d2kd.data.images import find_images


def test_files_as_given_and_the_images_of_folders_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.ppm", "notes.txt", "given.raw"):
        (tmp_path / name).touch()
    (tmp_path / "below.png").mkdir()  # a folder is no image
    (tmp_path / "below.png/deep.jpg").touch()
    found = find_images([tmp_path / "given.raw", str(tmp_path)])
    assert [path.name for path in found] == ["given.raw", "a.jpg", "b.PNG", "c.ppm"]


def test_missing_paths_and_folders_without_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected an image or a folder .* no '.*gone'"):
        find_images([tmp_path / "gone"])
    with pytest.raises(ValueError, match=r"expected images, found none in "):
        find_images([tmp_path])

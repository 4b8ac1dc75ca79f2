"""Files of images that are read as they look, or refused."""

import cv2
import numpy as np
import pytest
from PIL import Image

from d2kd.data.pixels import read_pixels


def test_both_orders_of_channels(tmp_path):
    bgr = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    assert (read_pixels(tmp_path / "a.png", "BGR") == bgr).all()
    assert (read_pixels(tmp_path / "a.png") == bgr[..., ::-1]).all()


def test_a_file_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert read_pixels(tmp_path / "a.jpg").shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("deep.png", np.full((4, 4), 4000, np.uint16)),
        ("float.tif", np.full((4, 4), 0.5, np.float32)),
    ],
)
def test_more_than_8_bits_are_refused(tmp_path, name, values):
    cv2.imwrite(str(tmp_path / name), values)
    with pytest.raises(ValueError, match=rf"8 bits for each channel at '.*{name}', found mode"):
        read_pixels(tmp_path / name)


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"read at '.*text.png', found another file. Replace"):
        read_pixels(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"expected an image at '.*gone.png', found no"):
        read_pixels(tmp_path / "gone.png")

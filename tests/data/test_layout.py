"""What is said about files that are missing."""

import pytest

from d2kd.data.layout import missing_file_hint


@pytest.mark.parametrize(
    ("path", "below"),
    [("coco/1.jpg", True), ("{root}/coco/1.jpg", True), ("{root}_2/1.jpg", False)],
)
def test_the_data_folder_is_named_where_it_matters(tmp_path, monkeypatch, path, below):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    hint = missing_file_hint(path.format(root=tmp_path))
    assert ("$DETECTRON2_DATASETS" in hint) is below
    assert ("correct the path" in hint) is not below

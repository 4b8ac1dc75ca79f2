import pytest
from detectron2.config import LazyCall as L

from d2kd.backbones import LibraryBackbone
from d2kd.loading import build_detector, load_detector_config, mapper_format
from d2kd.recipes import CONFIGS


def test_a_library_reads_no_weights_where_a_checkpoint_replaces_them():
    node = L(LibraryBackbone)(name="torchvision/mobilenet_v3_small", pretrained="nowhere.pth")
    assert isinstance(build_detector(node, pretrained=False).model, LibraryBackbone)
    assert node.pretrained == "nowhere.pth"  # the config stays as it is
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        build_detector(node)


def test_a_name_of_d2kds_configs_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, by_path = (
        load_detector_config(x) for x in ("demo/teacher.py", str(CONFIGS / "demo/teacher.py"))
    )
    assert named == by_path
    with pytest.raises(FileNotFoundError, match=r"or of d2kd, such as .* found 'demo/teachr.py'"):
        load_detector_config("demo/teachr.py")


DETREX = """
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, transforms as T

model = L(torch.nn.Identity)()
resize = L(T.ResizeShortestEdge)(short_edge_length=480, max_size=800)
# The test reads the fields only: the real mapper is detrex's.
mapper = L(DatasetMapper)(is_train=False, augmentation=[resize], img_format="RGB")
dataloader = dict(test=dict(mapper=mapper))
"""


def test_mappers_of_detrex_have_other_names_of_fields(tmp_path):
    path = tmp_path / "detr.py"
    path.write_text(DETREX)
    built = build_detector(str(path))
    assert built.input_format == "RGB" and built.test_size == (480, 800)
    config = load_detector_config(str(path))
    assert mapper_format(config, "test") == "RGB" and mapper_format(config, "train") is None

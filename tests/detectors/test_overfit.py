"""Each dense detector can overfit eight images of the demo set."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from d2kd.data import demo, register_all
from d2kd.detectors import ATSS, DDOD, GFL, AutoAssign, DDODHead, PointHead

LEVELS = ["p2", "p3", "p4"]
STEPS = 120
DETECTORS = {
    "atss": (ATSS, PointHead, {}),
    "gfl": (GFL, PointHead, dict(box_channels=68, quality=False)),
    "ddod": (DDOD, DDODHead, {}),
    "autoassign": (AutoAssign, PointHead, dict(prior_prob=0.02, box_bias=4.0)),
}


def pyramid(width: int) -> FPN:
    """A pyramid of p2 to p4, as in the demo."""
    stages = [
        ResNet.make_stage(
            BasicBlock, 1, stride_per_block=[s], in_channels=i, out_channels=o, norm="BN"
        )
        for s, i, o in ((1, width, width), (2, width, 2 * width), (2, 2 * width, 4 * width))
    ]
    names = ["res2", "res3", "res4"]
    stem = BasicStem(out_channels=width, norm="BN")
    return FPN(ResNet(stem, stages, out_features=names), names, width, norm="BN")


def build(name: str, width: int = 32):
    kind, head, fields = DETECTORS[name]
    return kind(
        backbone=pyramid(width),
        head=head(
            input_shape=[ShapeSpec(channels=width)] * 3,
            num_classes=10,
            conv_dims=[width] * 2,
            norm="GN",
            conv_bias=True,
            **fields,
        ),
        num_classes=10,
        head_in_features=LEVELS,
        pixel_mean=[110.0] * 3,
        pixel_std=[60.0] * 3,
        input_format="RGB",
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Eight images in the format of Detectron2's mapper."""
    saved = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    root = tmp_path_factory.mktemp("data")
    demo.make_demo(root, dict.fromkeys(demo.SPLITS, 8))
    register_all(root)
    found = []
    for record in DatasetCatalog.get("demo_train"):
        image = torch.from_numpy(read_image(record["file_name"], "RGB").copy()).permute(2, 0, 1)
        truth = annotations_to_instances(record["annotations"], tuple(image.shape[1:]))
        found.append({**record, "image": image, "instances": truth})
    yield found
    DatasetCatalog.data, MetadataCatalog.data = saved


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_learns_eight_images(name, inputs, tmp_path):
    model = build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        loss = sum(model(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    evaluator = COCOEvaluator("demo_train", output_dir=str(tmp_path))
    evaluator.reset()
    with torch.no_grad():
        evaluator.process(inputs, model(inputs))
    assert evaluator.evaluate()["bbox"]["AP"] > 90

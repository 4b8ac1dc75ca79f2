"""RetinaNet, with a ResNet or with MobileNetV2. The ResNets need Detectron2 only.

ResNet-50 and -101 are Detectron2's, for Caffe's ImageNet weights, which take BGR images. ResNet-18,
ResNet-34 and MobileNetV2 are for torchvision's ImageNet weights, which take RGB images: a recipe
with one of them sets `dataloader.train.mapper.image_format = "RGB"`.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L


def retinanet(depth):
    """With a ResNet of this depth: 18, 34, 50 or 101."""
    model = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py").model
    model.backbone.bottom_up.stages.depth = depth
    if depth < 50:
        del model.backbone.bottom_up.stages.stride_in_1x1  # basic blocks have no 1x1 convolutions
        _torchvision(model, channels=512)
    return model


def retinanet_mobilenet_v2():
    """With MobileNetV2, whose maps have 32, 96 and 1280 channels. Its batch norms are frozen."""
    from d2kd.backbones import LibraryBackbone  # imported here: the ResNets do not need d2kd

    model = retinanet(depth=50)
    # torchvision downloads the weights. `model.backbone.bottom_up.pretrained=PATH` reads a file.
    model.backbone.bottom_up = L(LibraryBackbone)(
        name="torchvision/mobilenet_v2", pretrained=True, norm="FrozenBN"
    )
    _torchvision(model, channels=1280)
    return model


def _torchvision(model, channels):
    model.backbone.top_block.in_channels = channels  # P6 is made from res5
    model.pixel_mean = [123.675, 116.28, 103.53]
    model.pixel_std = [58.395, 57.12, 57.375]
    model.input_format = "RGB"

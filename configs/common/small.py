"""Other bottom-up networks than ResNet-50, with ImageNet weights of torchvision. Images are RGB.

R-18.pkl, R-34.pkl: nobody hosts them for Detectron2. Download resnet18-f37072fd.pth or
resnet34-b627a593.pth from download.pytorch.org/models and run Detectron2's
tools/convert-torchvision-to-d2.py on it. torchvision downloads the weights of other networks;
`model.backbone.bottom_up.pretrained=PATH` takes them from a file, False leaves them out.
"""

from detectron2.config import LazyCall as L

from d2kd.backbones import LibraryBackbone

from .dense import torchvision_pixels


def resnet(model, depth):
    """ResNet-18 or -34, whose maps have 128, 256 and 512 channels."""
    torchvision_pixels(model)
    model.input_format = "RGB"
    model.backbone.bottom_up.stages.depth = depth
    del model.backbone.bottom_up.stages.stride_in_1x1  # basic blocks have no 1x1 convolutions


def library(model, name, **fields):
    """A network that torchvision calls `name`."""
    torchvision_pixels(model)
    model.input_format = "RGB"
    model.backbone.bottom_up = L(LibraryBackbone)(
        name=f"torchvision/{name}", pretrained=True, **fields
    )

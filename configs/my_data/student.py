"""The student alone: GFL on ResNet-18, with your own COCO files."""

from .common import OUTPUT, dataloader, detector, lr_multiplier, optimizer, train

model = detector("torchvision/resnet18", neck=64)

train.output_dir = f"{OUTPUT}/student"

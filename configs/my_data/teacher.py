"""The teacher: GFL on ResNet-50, with your own COCO files."""

from .common import OUTPUT, dataloader, detector, lr_multiplier, optimizer, train

model = detector("torchvision/resnet50", neck=128)

train.output_dir = f"{OUTPUT}/teacher"

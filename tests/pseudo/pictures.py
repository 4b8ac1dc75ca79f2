"""Make folders of small images, and untrained detectors that find boxes in them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests import toys

SIZES = ((48, 64), (64, 48), (40, 40), (48, 60))


def folder(path: Path, count: int = 8, sizes=SIZES) -> Path:
    """Write PNG files of noise, 00.png, 01.png, ... `sizes` are (height, width), in turn."""
    path.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.RandomState(i).randint(0, 256, (*sizes[i % len(sizes)], 3), np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02d}.png")
    return path


def detector(kind=toys.retinanet, **fields):
    """An untrained detector, whose scores are around one half."""
    torch.manual_seed(7)
    model = kind(**fields).eval()
    if hasattr(model, "head"):
        torch.nn.init.zeros_(model.head.cls_score.bias)
        torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
    return model

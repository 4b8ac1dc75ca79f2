"""The large ATSS, the teacher. It starts from the RetinaNet that the demo ships."""

import os

from .common import dataloader, lr_multiplier, optimizer, teacher, train

model = teacher("atss")

train.init_checkpoint = os.path.join(os.path.dirname(__file__), "../../demo/teacher.pth")
train.max_iter = 900
train.checkpointer.period = 300
dataloader.train.total_batch_size = 16
train.output_dir = "output/demo/dense/atss_teacher"

"""The student, which has converged alone, trains on alone. It needs Detectron2 only."""

import os

from .student import dataloader, lr_multiplier, model, optimizer, train

# The weights of `student.py train.max_iter=6000`.
train.init_checkpoint = os.path.join(os.path.dirname(__file__), "student.pth")
train.output_dir = "output/demo/alone"

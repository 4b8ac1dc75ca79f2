"""The student, which has converged alone, trains on with the demo's teacher."""

import os

from .distill import dataloader, lr_multiplier, model, optimizer, train

# The same weights, data and schedule as in student_continued.py.
train.init_checkpoint = os.path.join(os.path.dirname(__file__), "student.pth")
model.inherit = False  # the student keeps the neck and head that it has learned
train.output_dir = "output/demo/distilled"

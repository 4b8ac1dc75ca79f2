"""The wide student, which has converged alone, trains on with its teacher.

The method is given on the command line, as in distill.py.
"""

from .distill import model
from .wide_continued import dataloader, lr_multiplier, optimizer, train
from .wide_continued import model as student

model.student = student
train.output_dir = "output/real/deep_pcb/wide_distilled"

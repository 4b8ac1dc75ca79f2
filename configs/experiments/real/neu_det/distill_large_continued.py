"""The student, which has converged alone, trains on with the teacher of distill_large.py.

The method is given on the command line, as in distill.py.
"""

from .distill_large import dataloader, lr_multiplier, model, optimizer, train
from .student_continued import train as continued

train.init_checkpoint = continued.init_checkpoint
train.max_iter = continued.max_iter
train.output_dir = "output/real/neu_det/distilled_large_continued"

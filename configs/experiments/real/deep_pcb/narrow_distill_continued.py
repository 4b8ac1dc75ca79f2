"""The student of student_narrow.py, which has converged alone, trains on with its teacher.

Its neck and head are as wide as its teacher's, so no method needs an adapter. The method is given
on the command line, as in distill.py.
"""

from .distill import dataloader, model, train
from .narrow_continued import lr_multiplier, optimizer
from .narrow_continued import model as student
from .narrow_continued import train as continued

model.student = student

train.init_checkpoint = continued.init_checkpoint
train.max_iter = continued.max_iter
train.output_dir = "output/real/deep_pcb/narrow_distilled_continued"

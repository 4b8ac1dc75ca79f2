"""The student of student_wide.py with its teacher. The method is given as in distill.py."""

from .distill import model
from .student_wide import dataloader, lr_multiplier, optimizer, train
from .student_wide import model as student

model.student = student

train.output_dir = "output/real/deep_pcb/wide_distilled"

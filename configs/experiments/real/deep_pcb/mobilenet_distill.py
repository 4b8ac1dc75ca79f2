"""The student of student_mobilenet.py with its teacher. The method is given as in distill.py.

For random weights, give the overrides of student_mobilenet.py with `model.student.` for `model.`.
"""

from .distill import model
from .student_mobilenet import dataloader, lr_multiplier, optimizer, train
from .student_mobilenet import model as student

model.student = student

train.output_dir = "output/real/deep_pcb/mobilenet_distilled"

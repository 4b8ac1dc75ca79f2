"""The student of student_mobilenet.py with its teacher. The method is given as in distill.py.

For random weights, its fields are those of student_mobilenet.py below `model.student`.
"""

from .distill import model
from .student_mobilenet import dataloader, lr_multiplier, optimizer, train
from .student_mobilenet import model as student

model.student = student

train.output_dir = "output/real/deep_pcb/mobilenet_distilled"

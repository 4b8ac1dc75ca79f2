"""The student of fifth_pseudo.py, which also learns from features of a teacher in all images.

This teacher is the one of the model zoo, which has learned from all labels. The labels come from
another teacher, as in fifth_pseudo.py. The method is given on the command line, as in
fifth_distill.py.
"""

from .fifth_distill import model
from .fifth_pseudo import dataloader, lr_multiplier, optimizer, train

train.output_dir = "output/real/deep_pcb/fifth_pseudo_distill"

"""The student of fifth_pseudo.py, which also learns from the teacher's features in all images.

The method is given on the command line, as in fifth_distill.py.
"""

from .fifth_distill import model
from .fifth_pseudo import dataloader, lr_multiplier, optimizer, train

train.output_dir = "output/real/deep_pcb/fifth_pseudo_distill"

"""The student of few_pseudo.py, which also learns from its teacher's features in all images.

The method is given on the command line, for example: model.methods.pkd._target_=d2kd.methods.PKD
"""

from .adapted_distill import model
from .few_pseudo import dataloader, lr_multiplier, optimizer, train

model.teacher.weights = "output/real/plates/few_teacher/model_final.pth"

train.output_dir = "output/real/plates/few_pseudo_distill"

"""The second round: the student of fifth_pseudo.py has labeled the images, and a new one learns.

c=configs/experiments/real/deep_pcb
d2kd label --config-file $c/fifth_labels.py labels.teachers.large.model=$c/student_wide.py \
    labels.teachers.large.weights=output/real/deep_pcb/fifth_pseudo/model_final.pth \
    labels.output=output/real/deep_pcb/labels_second
"""

from .fifth_pseudo import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.rest.dataset.path = "output/real/deep_pcb/labels_second/labels.json"
train.output_dir = "output/real/deep_pcb/fifth_second"

"""halves_student.py with the labels of one teacher only, which knows the digits 0 to 4
(labels_low.py).

The labels say that no teacher searched for the digits 5 to 9. The student therefore learns
nothing about them.
"""

from .halves_student import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.path = "output/pseudo/demo_low/labels.json"
train.output_dir = "output/pseudo/halves_low_student"

"""halves_student.py with the labels of one teacher only, which knows the digits 5 to 9
(labels_high.py).

The labels say that no teacher searched for the digits 0 to 4. The student therefore learns
nothing about them.
"""

from .halves_student import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.path = "output/pseudo/demo_high/labels.json"
train.output_dir = "output/pseudo/halves_high_student"

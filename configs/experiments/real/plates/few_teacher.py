"""The teacher that has seen the labeled tenth of the dash-cam's images, too."""

from .few import dataloader
from .teacher import lr_multiplier, model, optimizer, train

train.output_dir = "output/real/plates/few_teacher"

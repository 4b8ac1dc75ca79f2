"""The wide student, which has converged alone, trains on alone."""

from .student_wide import dataloader, lr_multiplier, model, optimizer, train

# The run of `student_wide.py train.max_iter=8000`.
train.init_checkpoint = "output/real/deep_pcb/student_wide/model_final.pth"
train.max_iter = 800
train.output_dir = "output/real/deep_pcb/wide_continued"

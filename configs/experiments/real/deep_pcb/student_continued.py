"""The student, which has converged alone, trains on alone."""

from .student import dataloader, lr_multiplier, model, optimizer, train

# The run of `student.py train.max_iter=8000`.
train.init_checkpoint = "output/real/deep_pcb/student/model_final.pth"
train.max_iter = 800
train.output_dir = "output/real/deep_pcb/continued"

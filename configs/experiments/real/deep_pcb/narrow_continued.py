"""The student of student_narrow.py, which has converged alone, trains on alone."""

from .student_narrow import dataloader, lr_multiplier, model, optimizer, train

# The run of `student_narrow.py train.max_iter=8000`.
train.init_checkpoint = "output/real/deep_pcb/student_narrow/model_final.pth"
train.max_iter = 800
train.output_dir = "output/real/deep_pcb/narrow_continued"

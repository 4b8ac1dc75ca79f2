"""Evaluate students and teachers, and put their figures next to each other."""

from .run import check_teacher, evaluate, teacher_of

__all__ = ["check_teacher", "evaluate", "teacher_of"]

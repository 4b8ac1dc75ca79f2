"""Checkpoints: saved whole and finite, read without running code, loaded strictly."""

from .checkpointer import Checkpointer
from .fit import PREFIX
from .names import find_state_dict
from .reading import read_checkpoint
from .strict import load_strictly

__all__ = ["PREFIX", "Checkpointer", "find_state_dict", "load_strictly", "read_checkpoint"]

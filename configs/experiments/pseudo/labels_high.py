"""labels_halves.py with one teacher only, which knows the digits 5 to 9. No teacher searches for
the digits 0 to 4.
"""

from .labels_halves import labels

del labels.teachers.low
labels.output = "output/pseudo/demo_high"

"""The computations on whole maps that FGD and PGD need, written to save memory and time."""

"""How good are the labels? Figures, a report to read, and a comparison with ground truth."""

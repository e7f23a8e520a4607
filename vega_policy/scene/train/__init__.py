"""Training of the nano scene heads on scans with ground truth, and the comparison of their arms."""

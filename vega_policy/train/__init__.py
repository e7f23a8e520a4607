"""Training a policy by imitation: loop, checkpoints, averages, metrics."""

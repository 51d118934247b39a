"""Training: losses, the loop, checkpoints. Knows no cell."""

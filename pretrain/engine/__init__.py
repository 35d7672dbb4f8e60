"""The training loop: steps, optimizer, ranks, checkpoints, run directories, logs."""

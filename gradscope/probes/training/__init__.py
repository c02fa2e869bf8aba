"""What changes parameters: optimizers, modes, movement, and what keeps graphs alive."""

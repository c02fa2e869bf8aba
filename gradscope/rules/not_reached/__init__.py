"""Not reached: tensors that no gradient can get to."""

"""What torch refuses because operands do not go together."""

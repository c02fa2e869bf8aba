"""What is done on request only: checks and outputs."""

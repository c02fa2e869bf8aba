"""A run with fake tensors: shapes, types and history as for real, nothing computed, and stand-ins for values read."""

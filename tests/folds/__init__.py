"""Tests of what is counted over a run."""

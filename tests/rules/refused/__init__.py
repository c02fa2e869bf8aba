"""Tests of the rules on what torch refuses."""

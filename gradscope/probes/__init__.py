import os

FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep  # frames of its files are ours
PACKAGE = os.path.dirname(os.path.dirname(FOLDER)) + os.sep

"""What is counted over a whole run: plain numbers, taken in as things happen, without torch and without judgement.

Probes feed folds at every step, kept or not, so that a run of any length costs the same; what they yield goes into the
frozen run. A fold is tested with lists of what happened.
"""

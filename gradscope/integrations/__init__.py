"""Callbacks for training loops that a library runs; each imports its library, and only when it is asked for.

from gradscope.integrations.lightning import GradscopeCallback
from gradscope.integrations.transformers import GradscopeCallback
"""

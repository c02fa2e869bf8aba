"""The switch in the environment that leaves programs and tests unobserved."""

from __future__ import annotations

import os


def is_off() -> bool:
    """Whether `GRADSCOPE=0` is set."""
    return os.environ.get("GRADSCOPE") == "0"

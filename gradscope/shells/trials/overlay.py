"""Sources served from memory: a program runs as if its files had been changed, and the files stay as they are."""

from __future__ import annotations

import importlib.machinery
import io
import linecache
import os
import tokenize
from collections.abc import Mapping
from typing import Any


def serve(changed: Mapping[str, bytes]) -> None:
    """From now on, in this process, these files have these contents for who imports, runs or shows them.

    The keys are absolute paths. Nothing that was compiled before is taken for a changed file, and nothing is kept.
    """
    files = {os.path.realpath(file): content for file, content in changed.items()}
    loader: Any = importlib.machinery.SourceFileLoader
    read, look = loader.get_data, loader.path_stats

    def get_data(self: object, path: str) -> bytes:
        content = files.get(os.path.realpath(path))
        return content if content is not None else read(self, path)

    def path_stats(self: object, path: str) -> Any:
        if os.path.realpath(path) in files:
            raise OSError(f"{path} is served from memory")  # so that no compiled file is looked for
        return look(self, path)

    loader.get_data, loader.path_stats = get_data, path_stats
    for file, content in changed.items():
        encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
        lines = io.TextIOWrapper(io.BytesIO(content), encoding, "replace").readlines()
        for name in {file, os.path.realpath(file)}:
            linecache.cache[name] = (len(content), None, lines, name)

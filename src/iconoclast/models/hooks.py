"""Hooks that also act on compiled modules."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def hooks_act() -> Iterator[None]:
    """Run compiled modules as written while the context lasts: compilation ignores hooks that are added later."""
    if "torch._dynamo" not in sys.modules:  # then nothing has been compiled
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield

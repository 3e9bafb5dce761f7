"""Hooks that act, also on modules that somebody has compiled."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def hooks_act() -> Iterator[None]:
    """While this lasts, compiled modules run as they were written.

    A compiled module has the hooks in it that were there when it was compiled; of later ones it knows nothing.
    """
    if "torch._dynamo" not in sys.modules:  # then nothing has been compiled
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield

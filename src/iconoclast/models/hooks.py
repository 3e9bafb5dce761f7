"""Hooks that also act on compiled modules, and forward passes replaced."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def hooks_act() -> Iterator[None]:
    """Run compiled modules as written while the context lasts: compilation ignores hooks that are added later."""
    if "torch._dynamo" not in sys.modules:  # then nothing has been compiled
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any] | None]) -> Iterator[None]:
    """Give modules other forward passes while the context lasts; with None, that of their class."""
    own = {module: module.__dict__.pop("forward", None) for module in forwards}  # as offloading puts one there
    try:
        for module, forward in forwards.items():
            if forward is not None:
                module.forward = forward
        yield
    finally:
        for module, before in own.items():
            module.__dict__.pop("forward", None)
            if before is not None:
                module.forward = before

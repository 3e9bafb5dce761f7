"""Registries: what can be chosen by name, extended by a decorator here or by an entry point of another package."""

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from iconoclast.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name.

    A module of this package registers with the decorator. A stranger's package needs no change here: it names its
    thing in an entry point of the group `iconoclast.<group>`, which is loaded when it is first asked for.

    Args:
        kind: what the things are called in messages, as in "judge".
        group: last part of the entry-point group, as in "judges".

    Example:
        >>> estimators: Registry[Callable[[int], int]] = Registry("estimator", "estimators")
        >>> @estimators.register("double")
        ... def double(x: int) -> int:
        ...     return 2 * x
        >>> estimators.get("double")(4)
        8
    """

    def __init__(self, kind: str, group: str) -> None:
        self._kind = kind
        self._group = f"iconoclast.{group}"
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a function or class to make it available under `name`."""

        def keep(thing: T) -> T:
            self._things[name] = thing
            return thing

        return keep

    def get(self, name: str) -> T:
        """The thing of that name.

        Raises:
            UserError: nothing is registered under it; the nearest names are given.
        """
        if name in self._things:
            return self._things[name]
        for point in entry_points(group=self._group, name=name):
            self._things[name] = point.load()
            return self._things[name]
        near = difflib.get_close_matches(name, list(self), 3) or list(self)
        raise UserError(f'There is no {self._kind} "{name}". Use {", ".join(near) or "nothing: none is installed"}.')

    def __iter__(self) -> Iterator[str]:
        """All names: those registered here, then those of entry points."""
        return iter(dict.fromkeys([*self._things, *entry_points(group=self._group).names]))

    def __contains__(self, name: object) -> bool:
        """Check whether a thing of that name can be had."""
        return name in set(self)

"""Registries of things chosen by name, extended by a decorator here or by an entry point of another package."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from iconoclast.errors import UserError

T = TypeVar("T")


def require_known(name: object, known: Iterable[str], kind: str, error: type[UserError] = UserError) -> None:
    """Refuse an unknown name, so that a slip is not taken for something else.

    Args:
        kind: the things' name in the message, as in "direction scope".
        error: the class to raise.

    Raises:
        UserError: the name is not known. The message names it, the nearest one and all known ones.
    """
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise error(f'There is no {kind} "{name}".{meant} Use one of {", ".join(names) or "none: none is installed"}.')


class Registry(Generic[T]):
    """Things of one kind by name.

    A module of this package registers with the decorator. Another package needs no change here: it names its thing in
    an entry point of the group `iconoclast.<group>`, which is loaded when it is first asked for.

    Args:
        kind: the things' name in messages, as in "judge".
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
        """Return the thing of that name; raise UserError, with the nearest names, if there is none."""
        if name not in self._things:
            require_known(name, self, self._kind)
            self._things[name] = next(iter(entry_points(group=self._group, name=name))).load()
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        """Yield all names: those registered here, then those of entry points."""
        return iter(dict.fromkeys([*self._things, *entry_points(group=self._group).names]))

    def __contains__(self, name: object) -> bool:
        return name in set(self)

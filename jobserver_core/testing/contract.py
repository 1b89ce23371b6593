"""The base of all contract suites: their tests can be inherited, but not replaced."""

from __future__ import annotations

from typing import Any

__all__ = ["Contract"]


class Contract:
    """The root of every contract suite: a class of ``test_*`` methods that a backend's tests inherit.

    A subclass supplies the fixtures and methods that the suite needs, and can add tests. Defining a subclass
    in which a test of the contract is replaced (redefined, set to None, or hidden by a mixin) is a TypeError,
    so that passing a contract means the same for every backend.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        replaced = sorted(name for name, owner in _tests(cls).items() if owner is not _owner(cls, name))
        if replaced:
            raise TypeError(f"{cls.__qualname__} replaces tests of its contract: {', '.join(replaced)}")

    @classmethod
    def contract_tests(cls) -> tuple[str, ...]:
        """Return the names of the contract's tests, in the order they are written."""
        return tuple(_tests(cls))


def _tests(cls: type) -> dict[str, type]:
    """Every test of the contracts above a class, and the contract that first wrote it."""
    contracts = [base for base in reversed(cls.__mro__) if issubclass(base, Contract)]
    found: dict[str, type] = {}
    for contract in contracts:
        for name in vars(contract):
            if name.startswith("test_"):
                found.setdefault(name, contract)
    return found


def _owner(cls: type, name: str) -> type:
    """Return the class whose definition of a name is used."""
    return next(base for base in cls.__mro__ if name in vars(base))

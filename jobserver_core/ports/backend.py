"""What all ports have in common: the configuration can select an implementation by its name."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

__all__ = ["Backend"]

B = TypeVar("B", bound="Backend")


class Backend(ABC):
    """An implementation of a port.

    A distribution registers its class as an entry point in the group ``jobserver.<kind>``, under the name
    that the configuration selects it by.
    """

    kind: ClassVar[str]
    """Which port this is, as in the name of the group: ``metadata``, ``launcher``, …"""

    @classmethod
    def from_settings(cls: type[B], settings: Settings, data_dir: Path) -> B:
        """Create the backend that the settings describe, with its files below ``data_dir``.

        Refuse options that you do not know. The default is for backends without options: it calls the class
        without arguments.

        Raises:
            InvalidSetting: A setting can never work.
            StorageError: A store cannot be opened.
        """
        return cls()

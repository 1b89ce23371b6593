"""The configuration of a job: parsed, checked, and completed with the defaults of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobserver_core.config.trees import overlaid
from jobserver_core.models.arguments import config_text
from jobserver_core.models.json_values import JsonMapping, dumps, loads

if TYPE_CHECKING:
    from jobserver_core.config.settings import InputLimits


class JobConfigs:
    """Parses configurations of users, within the limits, and adds ``defaults`` for the job."""

    def __init__(self, limits: InputLimits, defaults: JsonMapping) -> None:
        self._limits = limits
        self._defaults = defaults

    def parse(self, text: str | bytes) -> JsonMapping:
        """Parse HOCON or JSON from a user; JSON keeps its text.

        Raises:
            InvalidConfig: The text is invalid or exceeds a limit.
        """
        from jobserver_core.config import hocon  # noqa: PLC0415 - only servers that receive HOCON need it

        limits = self._limits
        return hocon.read_untrusted(text, max_bytes=limits.config_size, max_depth=limits.config_depth)

    def to_json(self, config: str | JsonMapping) -> str:
        """Return a configuration as the JSON to record.

        Raises:
            InvalidConfig: It cannot be represented in JSON, or exceeds a limit.
        """
        tree = self.parse(config) if isinstance(config, str) else config
        return config_text(tree)

    def with_defaults(self, config: str) -> str:
        """Merge a recorded configuration over the defaults; the job gets the result."""
        return dumps(overlaid(self._defaults, loads(config))) if self._defaults else config

"""The reference page of every setting, made from the settings themselves.

``python -m jobserver_core.config.reference > docs/reference/configuration.md`` writes it again; a test
fails while the page and the settings differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobserver_core.config.loading import describe, sections
from jobserver_core.config.old_settings import ALIASES, IGNORED
from jobserver_core.config.settings import Settings

__all__ = ["settings_reference"]

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m jobserver_core.config.reference`; change the settings, not this page. -->

`jobserver serve --config FILE` reads a file in
[HOCON](https://github.com/lightbend/config/blob/main/HOCON.md), a superset of JSON. Every key has a
default, so a file needs only what differs:

```hocon
spark {
  master = "local[4]"
  context-settings { num-cpu-cores = 4, spark.sql.shuffle.partitions = 8 }
  contexts { reports { memory-per-node = 2g } }
}
jobserver {
  http { port = 9090 }
  jobs { sync-timeout = 30 s, retention = 30 days }
  callbacks { signing-secret = ${?CALLBACK_SECRET} }
}
```

In Python, `jobserver_core.Settings` has the same settings: the key `jobserver.jobs.sync-timeout` is the
attribute `settings.jobs.sync_timeout`. `load_settings(path, overrides={"jobserver.http.port": 0})` of
`jobserver_core` reads a file and applies overrides.

## Values

- **Duration**: a number and a unit: `500ms`, `10 s`, `2 minutes`, `1 hour`, `30 days`. A number
  without a unit is in milliseconds, as in HOCON, and logs a warning. In Python, durations are in seconds.
- **Size**: a number and a unit. `KiB`, `MiB`, `GiB`, `TiB`, and `k`, `m`, `g`, `t` alone, are powers of
  1024; `kB`, `MB`, `GB`, `TB` are powers of 1000. A number without a unit is in bytes, as in
  Python.
- **Path**: relative to the directory of the configuration file; `~` is the home directory.
- **List**: `[a, b]`, or one string with commas: `"a, b"`.
- **Object**: keys that you choose; those of a file and of overrides are merged.
- **Secret**: a string that is redacted in logs and by `jobserver config show`.

A file can include another one in the same directory with `include "other.conf"`; a missing file is ignored.
`include required("other.conf")` makes it mandatory, and `include "other"` reads `other.conf`, `other.json`
and `other.properties`. Use environment variables as `${NAME}`, or as `${?NAME}` if the variable may be
missing. An unknown key is an error that names the nearest known one.

## Settings
"""

_POSTED = """
## Configurations in requests

The configuration of a job or context in a request is also HOCON or JSON, but it is untrusted:

- `include` of any kind is refused, and environment variables are not read: `${NAME}` refers to a key of the
  same document.
- `jobserver.limits.config-size` limits the document, also after its substitutions are resolved;
  `jobserver.limits.config-depth` limits how deep objects and lists nest.
- Other limits are fixed. HOCON that is not JSON can have 100,000 values. Substitutions can refer to each
  other 100 levels deep and take 300,000 steps to resolve, fewer in short documents. A number can have 1000
  characters. So the most hostile document takes about two seconds of one core, and ordinary ones next to
  nothing. Large configurations are parsed one at a time, so many of them do not delay other calls.
- A Spark setting can have settings below it: in `spark.context-settings` and in each of `spark.contexts`,
  `spark.speculation = true` and `spark.speculation.interval = 10s` both apply, as in a configuration file.
  The tree that a job gets cannot hold both: its `contextConfig` has the settings below, and in its own
  configuration the later one hides the other, as in Typesafe Config.
- Durations and sizes stay strings (`10 s`), single quotes are part of a string, and unquoted strings
  must not contain ``$ " { } [ ] : = , + # ` ^ ? ! @ * & \\``.
- A repeated key in JSON is merged as in HOCON, and `NaN` and `Infinity` are strings.
"""


def settings_reference() -> str:
    """Return the page as Markdown."""
    return _INTRODUCTION + "".join(_tables()) + _POSTED + "".join(_old_keys())


def _tables() -> Iterator[str]:
    defaults = list(describe(Settings(data_dir=Path("~/.local/share/jobserver"))))
    parts = {Settings.prefix: Settings, **{part.prefix: part for part in sections().values()}}
    for prefix, part in parts.items():
        rows = [d for d in defaults if d.key.rpartition(".")[0] == prefix]
        summary = "The server as a whole." if part is Settings else (part.__doc__ or "")
        yield f"\n### {prefix}\n\n{summary}\n\n"
        yield "| key | takes | default | meaning |\n| --- | --- | --- | --- |\n"
        for row in rows:
            name = row.key.removeprefix(f"{prefix}.")
            yield f"| `{name}` | {row.kind} | {_shown(row.value)} | {row.doc} |\n"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"`[{', '.join(value)}]`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _old_keys() -> Iterator[str]:
    yield "\n## Files of the old server\n\nThese old keys have the same meaning as a key above:\n\n"
    yield "| old key | key |\n| --- | --- |\n"
    yield from (f"| `{old}` | `{new}` |\n" for old, new in ALIASES.items())
    yield "\nThe `yarn-…` keys apply only to a YARN master, and take precedence there. "
    yield "Every key of `jobserver` can also be below `spark.jobserver`.\n\n"
    yield "These keys, with everything below them, have no meaning here. Each is ignored with one warning: "
    yield ", ".join(f"`{key}`" for key in sorted(IGNORED))
    yield ".\n\nIf they turn on access control or encryption, they are refused instead of ignored, "
    yield "so a server is never open by accident.\n"


if __name__ == "__main__":
    sys.stdout.write(settings_reference())

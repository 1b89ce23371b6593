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
[HOCON](https://github.com/lightbend/config/blob/main/HOCON.md), of which JSON is a part. Every key has a
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

In Python the same settings are `jobserver_core.Settings`: the key `jobserver.jobs.sync-timeout` is the
attribute `settings.jobs.sync_timeout`. `load_settings(path, overrides={"jobserver.http.port": 0})` of
`jobserver_core.config.loading` reads a file, with overrides over it.

## Values

- **Duration**: a number and a unit: `500ms`, `10 s`, `2 minutes`, `1 hour`, `30 days`. Without a unit it
  is milliseconds, as HOCON has it, and a warning says so. In Python durations are seconds.
- **Size**: a number and a unit. `KiB`, `MiB`, `GiB`, `TiB`, and `k`, `m`, `g`, `t` alone, are powers of
  1024; `kB`, `MB`, `GB`, `TB` are powers of 1000. Without a unit it is bytes. In Python sizes are bytes.
- **Path**: relative ones start at the folder of the configuration file, and `~` is the home folder.
- **List**: `[a, b]`, or one text with commas: `"a, b"`.
- **Object**: keys of your own; a file's and an override's are merged.
- **Secret**: text that is never shown, neither in logs nor by `jobserver config show`.

A file may `include "other.conf"`, which is looked for beside it (nothing happens when it is missing,
unless it is `include required("other.conf")`; `include "other"` reads `other.conf`, `other.json` and
`other.properties`), and use environment variables as `${NAME}`, or `${?NAME}`
for one that may be missing. An unknown key is an error that names the nearest known one.

## Settings
"""

_POSTED = """
## What users post

The configuration of a job or a context that comes with a request is HOCON or JSON too, but it comes from
outside:

- `include` of any kind is refused, and the environment is not consulted: `${NAME}` means a key of the
  same text.
- `jobserver.limits.config-size` bounds the text, and what it becomes once its substitutions are put in;
  `jobserver.limits.config-depth` bounds how deep objects and lists nest.
- Further limits are fixed. HOCON that is not JSON has at most 100,000 values; substitutions refer to each
  other at most 100 deep, and take at most 300,000 steps to put in, short texts fewer; a number has at most
  1000 characters. So the most hostile text takes about two seconds of one core, and everyday ones next to
  nothing. Large configurations are parsed one after the other, so that many of them hold up no other calls.
- Settings of Spark may stand below settings: below `spark.context-settings` and in each of `spark.contexts`,
  `spark.speculation = true` and `spark.speculation.interval = 10s` keep both, as does a configuration file.
- Durations and sizes stay text (`10 s`), single quotes are part of the text, and text without quotes
  must not hold ``$ " { } [ ] : = , + # ` ^ ? ! @ * & \\``.
- A key that JSON repeats is merged as in HOCON, and `NaN` and `Infinity` are text.
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
    yield "\n## Files of the old server\n\nThese keys of its files mean the same as one of the above:\n\n"
    yield "| old key | key |\n| --- | --- |\n"
    yield from (f"| `{old}` | `{new}` |\n" for old, new in ALIASES.items())
    yield "\nThe `yarn-…` ones count on a YARN master only, and win there. "
    yield "Every key of `jobserver` may also stand below `spark.jobserver`.\n\n"
    yield "These mean nothing here, with all that is below them, and are ignored with one warning each: "
    yield ", ".join(f"`{key}`" for key in sorted(IGNORED))
    yield ".\n\nAccess control and encryption that were switched on there are not ignored but refused, "
    yield "so that a server is never open by accident.\n"


if __name__ == "__main__":
    sys.stdout.write(settings_reference())

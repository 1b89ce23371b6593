"""How durations are shown, by the command line and by the web UI alike."""

from __future__ import annotations

DURATIONS = {
    0.0: "< 1 ms",
    0.0004: "< 1 ms",
    0.001: "1 ms",
    0.045: "45 ms",
    0.57: "570 ms",
    0.9996: "999 ms",
    1.0: "1 s",
    1.125: "1.13 s",
    4.2: "4.2 s",
    6.341: "6.34 s",
    9.999: "10 s",
    10.9: "10 s",
    59.999: "59 s",
    60.0: "1 min",
    99.9: "1 min 39 s",
    125.4: "2 min 5 s",
    3599.9: "59 min 59 s",
    3600.0: "1 h",
    7325.0: "2 h 2 min",
    86400.0: "1 d",
    93600.0: "1 d 2 h",
}
"""Seconds, and what is shown for them."""

"""The protocol of the launcher: every message between its processes, and how messages are sent."""

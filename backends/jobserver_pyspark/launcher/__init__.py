"""The part of the launcher in the server's process: a supervisor for each context."""

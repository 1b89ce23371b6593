"""The part in the server's process: a supervisor for each context."""

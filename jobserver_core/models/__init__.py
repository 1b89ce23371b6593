"""What the server remembers: binaries, contexts, jobs, callbacks, and their lifecycles."""

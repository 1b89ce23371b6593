"""What the server remembers: binaries, contexts, jobs, callbacks, and the lifecycles of them."""

"""What runs in the server's process: one supervisor per context."""

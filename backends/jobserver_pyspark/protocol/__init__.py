"""What server, host and runners say to each other, and how it is framed."""

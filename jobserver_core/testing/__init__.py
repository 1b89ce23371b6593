"""Contract suites, builders and fakes for those who write a backend or embed the server."""

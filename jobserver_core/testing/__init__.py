"""Contract suites, builders and fakes for authors of backends and embedders of the server."""

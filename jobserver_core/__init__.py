"""Spark as a service, as a library."""

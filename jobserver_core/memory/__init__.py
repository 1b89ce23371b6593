"""In-memory implementations of every port: for tests, and for embedding without anything else."""

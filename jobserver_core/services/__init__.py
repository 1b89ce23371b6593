"""The use cases of the job server; they see ports and models only."""

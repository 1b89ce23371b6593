"""Contexts and jobs while they live: starting, queueing, killing, recovering, keeping results."""

"""Callbacks: recording what is due, sending it fairly, and giving up by rule."""

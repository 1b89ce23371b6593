"""Callbacks: record due deliveries, send them fairly, and abandon them by rule."""

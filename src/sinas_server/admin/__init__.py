"""Watching and steering an installation: its queues, workers and stuck jobs."""

"""Agents: what a user declares about an assistant."""

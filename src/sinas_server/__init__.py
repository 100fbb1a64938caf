"""Sinas: a self-hosted platform for AI in products."""

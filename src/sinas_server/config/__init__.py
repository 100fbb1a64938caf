"""Declarative configuration: YAML documents in, resources out, and back."""

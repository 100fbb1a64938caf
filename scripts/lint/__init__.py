"""Rules of this repository that no public linter knows: `python -m scripts.lint` checks them all."""

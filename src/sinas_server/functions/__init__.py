"""Functions: Python that users write, run in a sandbox through one door, with a record of every execution."""

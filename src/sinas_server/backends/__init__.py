"""The outside world: each folder is a protocol and one file per implementation of it."""

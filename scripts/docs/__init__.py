"""Reference pages generated from the code: `python -m scripts.docs` writes them, `--check` fails on a stale one."""

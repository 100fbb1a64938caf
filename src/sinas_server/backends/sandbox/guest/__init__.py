"""The program inside the sandbox: standard library only, run by any Python 3.11+ with `python -I -S -B`.

It never imports the rest of the package: the interpreter that runs functions need not have it.
"""

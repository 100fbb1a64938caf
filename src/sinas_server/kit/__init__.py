"""Pure functions that know no Sinas noun and do no I/O."""

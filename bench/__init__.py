"""How fast Sinas is, as ratios against references measured in the same run: `make bench` (docs/benchmarks.md)."""

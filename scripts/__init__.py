"""Programs that work on the repository itself; none is part of the product."""

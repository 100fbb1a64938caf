"""What is true of every kind of resource; no noun is known here."""

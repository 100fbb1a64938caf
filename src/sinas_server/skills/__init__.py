"""Skills: documents of instructions that agents read, always or when they need them."""

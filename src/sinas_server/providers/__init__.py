"""Language-model providers: what administrators declare about them, and which one answers."""

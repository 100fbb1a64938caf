"""Templates: documents that users declare, rendered with variables and sent as mail."""

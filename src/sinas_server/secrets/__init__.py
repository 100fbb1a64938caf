"""Secrets: credentials that go in through the API and come out only where code or connectors use them."""

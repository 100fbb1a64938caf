"""Users, roles, API keys and login: turns a request into a `Caller`."""

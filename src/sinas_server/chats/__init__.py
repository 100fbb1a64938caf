"""Chats: what happens between people and agents, turn by turn."""

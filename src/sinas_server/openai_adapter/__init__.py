"""Agents and provider models behind the API of OpenAI, for its SDKs and whatever is built on them."""

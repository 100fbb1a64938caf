"""`sinas agent test`: what is said to agents, and what they are expected to do about it."""

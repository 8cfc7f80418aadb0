"""A run: its directory, identity, resume, stored config, and the session that trains in it."""

"""Faults on purpose: a command that was killed, paused or robbed of its disk must end as if nothing had happened."""

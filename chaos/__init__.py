"""Fault injection: a command that is killed, paused or runs out of disk must end as if nothing had happened."""

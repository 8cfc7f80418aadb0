"""From the words of a command to a composed, checked config."""

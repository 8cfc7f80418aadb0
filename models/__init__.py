"""Neural networks. Imports no other package of this project, so a file can be read, copied and tested with torch
alone."""

"""One encoder a file; the file's name is the value of `arch.encoder_type`."""

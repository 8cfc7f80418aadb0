"""One encoder per file; the file name is the value of `arch.encoder_type`."""

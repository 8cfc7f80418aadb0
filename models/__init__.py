"""Neural networks. Nothing here imports another package of ours: a file can be read, copied and tested with
torch alone."""

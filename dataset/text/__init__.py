"""Text data sets: tokenizers, corpora, token files and the batches cut from them."""

"""A frozen base language model, and hypernetworks that read its activations and adapt its weights to each sample."""

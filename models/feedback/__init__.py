"""A frozen base language model, and hypernetworks that read it and adapt its weights to each sample."""

"""What evaluators of few-shot models do with a model at test time: other demonstrations, search, training."""

"""Test-time adaptation of few-shot models: other demonstrations, latent search, training."""

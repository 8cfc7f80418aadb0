"""A Hugging Face language model with LoRA adapters from peft."""

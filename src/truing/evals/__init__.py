"""What a model does on held-out prompts, in numbers that carry their uncertainty."""

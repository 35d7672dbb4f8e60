"""Fine-tuning on twelve tasks: their official files, heads, losses and scores."""

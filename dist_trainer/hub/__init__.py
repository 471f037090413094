"""What a run shows on the Hugging Face hub: its weights, a model card, curves and sample videos."""

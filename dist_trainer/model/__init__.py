"""The model in training: weights, adapters, the packed forward, DeepSpeed."""

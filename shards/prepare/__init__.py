"""From a table of clips and captions to a dataset of latents and text embeddings."""

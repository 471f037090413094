"""Distributed training of the LTX-Video diffusion transformer."""

"""Clips and captions to samples."""

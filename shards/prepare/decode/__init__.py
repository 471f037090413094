"""Samples back to videos and pictures."""

"""Clips to reference clips."""

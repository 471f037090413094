"""The figures of a step: brought together, sorted by noise level and length, and set against what is possible."""

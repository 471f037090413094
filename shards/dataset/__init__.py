"""A dataset as a whole: its description, its manifest, and what is done to all of it."""

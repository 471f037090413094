"""Where figures, texts and videos of a run go to be looked at."""

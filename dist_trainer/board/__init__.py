"""What a person watches: the board, and the sinks behind it."""

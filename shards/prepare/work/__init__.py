"""Work in small units that any number of processes share, each of which may be killed."""

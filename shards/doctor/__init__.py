"""Is a dataset sound, and how to make it so: checks of each sample, of each shard and of the whole, and repair."""

"""Whether the ranks live and move, and what is said when one does not."""

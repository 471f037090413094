"""What a run saves of itself and goes on from."""

"""What is looked at during training: sample videos on a schedule."""

"""What comes after a job: why it ended, whether it comes back, and how Slurm is asked."""

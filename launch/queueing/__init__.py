"""What queues jobs: what is asked for, what runs in them, and what they will do."""

"""From raw videos to planned steps: encoding, the dataset on disk, and how samples reach the ranks."""

"""LTX-Video-Trainer's preprocessed files to samples."""

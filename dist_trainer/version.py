"""The version of the trainer, read by setup.cfg and written into every run."""

__version__ = "0.1.0"

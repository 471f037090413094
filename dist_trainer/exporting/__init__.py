"""Trained weights as files that diffusers and ComfyUI open. Needs neither ranks nor a GPU."""

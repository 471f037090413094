"""From the plan to packs on the device: samples, noise, conditions."""

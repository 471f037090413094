"""The trial of all nodes before training: devices, network, clocks, storage, code and data, each within a limit."""

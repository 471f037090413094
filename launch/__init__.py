"""How a run reaches the machines that train it. Imports without torch."""

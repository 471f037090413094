"""Rank 0's judgement on what all ranks report: which fault is a node's own, and which one all share."""

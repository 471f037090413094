"""The tables of clips that users write and stages fill."""

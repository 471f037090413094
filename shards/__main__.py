"""``python -m shards`` is ``ltx-shards``."""

from __future__ import annotations

from shards.cli import main

if __name__ == "__main__":
    main()

"""What is stale, dropped, drifting, orphaned or behind."""

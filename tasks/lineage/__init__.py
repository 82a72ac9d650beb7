"""Where a model came from, where a source went, and taking a source down."""

"""Measurements: each figure is a ratio to a named baseline that ran in the same minute on the same machine."""

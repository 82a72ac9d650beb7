"""Measurements: ratios to a named baseline that ran in the same minute on the same machine, and rates beside them."""

"""Runnable recipes: the only place that knows everything."""

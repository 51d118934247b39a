"""Compression: what makes trained weights fewer, as functions and transforms of parameter trees."""

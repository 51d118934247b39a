"""Sparse Bayesian learning: arrays in, arrays out."""

"""Convolutional networks on plain arrays."""

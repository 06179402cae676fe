"""Pixels and sheets of images."""

"""Reads benchmarks and generates a method's images for them."""

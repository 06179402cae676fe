"""Exact metrics of the miniature world, and the base class of all metrics of generated samples."""

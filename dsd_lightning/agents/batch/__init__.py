"""Batch mode: requests are gathered, submitted together, and answered within a day at half the price."""

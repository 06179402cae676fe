"""pixel_judge."""

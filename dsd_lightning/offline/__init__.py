"""Who writes and who judges where there is no network? Rules for the miniature's captions, and eyes for pixels alone."""

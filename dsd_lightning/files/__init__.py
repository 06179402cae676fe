"""Files: written atomically, read strictly."""

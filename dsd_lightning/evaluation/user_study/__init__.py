"""Makes pages on which people rate images without knowing the methods, and evaluates their ratings."""

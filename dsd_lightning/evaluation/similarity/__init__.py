"""Measures similarities of results, references and prompts with image encoders."""

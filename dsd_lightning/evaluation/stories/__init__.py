"""Scores illustrated stories as ViStoryBench does: style, prompt alignment, characters on stage."""

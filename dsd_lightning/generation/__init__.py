"""Runs `python generate.py`: flags, tables of jobs, guidance sheets, stories, and metadata of images."""

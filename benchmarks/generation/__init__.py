"""Compares our sampling with a plain loop on diffusers and peft."""

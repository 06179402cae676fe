"""FLUX as diffusers has it: loading, tokens, pixels to latents, prompts to embeddings."""

"""One module for each provider of language models, and what they share."""

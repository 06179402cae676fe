"""The offline VLM judge of pairs: compares characters by their pixels."""

"""Rule-based stand-ins of the miniature world for writer, VLM judge and scoring judge, and their audit."""

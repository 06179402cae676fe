"""The offline scoring judge: reads the attributes of miniature scenes from their pixels."""

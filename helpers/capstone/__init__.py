"""The judge of compressed models, its sandbox, and published snippets run apart."""

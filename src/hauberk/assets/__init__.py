"""Model assets: files that can run code, what software stands behind a model, and how well it can be copied."""

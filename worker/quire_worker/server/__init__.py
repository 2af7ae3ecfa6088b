"""The OpenAI-compatible HTTP server: the API process. Never imports torch."""

"""The worker: an OpenAI-compatible server and its paged-KV engine."""

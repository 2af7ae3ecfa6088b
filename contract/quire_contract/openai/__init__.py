"""OpenAI's HTTP API: what requests, answers and errors look like, and how a body is checked."""

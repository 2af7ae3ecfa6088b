"""Anthropic's HTTP API: what requests, answers, stream events and errors of /v1/messages look like, and what they mean as chats."""

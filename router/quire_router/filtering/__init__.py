"""Content filters: what looks for something in prompts and answers, and what is done about it."""

"""What two processes must agree on: hashes, events, prompts, requests, names. No torch, nothing of ours."""

"""The paged KV cache's bookkeeping: block pool and block manager. No torch."""

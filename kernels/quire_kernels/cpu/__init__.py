"""CPU paths of the ops whose reference is not already the fast way on a processor."""

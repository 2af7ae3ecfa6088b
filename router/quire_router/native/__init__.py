"""Parts of the router's way of a request in C++: an extension module with one source for each, and what builds and loads it.

Every part has a twin in Python that decides the same; without the extension the twin is used. Tests hold one against the other.
"""

"""How much tenants may ask for: meters that hold over all routers of a release."""

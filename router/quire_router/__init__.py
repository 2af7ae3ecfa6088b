"""The router: one endpoint for all tenants, each request to the worker that holds its prefix."""

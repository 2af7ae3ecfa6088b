"""The custom resources as pydantic models: what a user may write, and what is wrong with what they wrote."""

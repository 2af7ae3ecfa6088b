"""The operator: InferenceService resources into the objects that serve them."""

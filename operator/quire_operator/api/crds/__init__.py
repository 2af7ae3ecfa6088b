"""CustomResourceDefinitions from the models; `python -m quire_operator.api.crds [FOLDER]` writes them."""

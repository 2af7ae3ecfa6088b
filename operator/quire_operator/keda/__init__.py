"""KEDA's external scaler: what KEDA asks of a scaler, answered from the routers' reports."""

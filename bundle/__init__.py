"""The bundle as a product: checks, export, predictor, service."""

"""What training on several ranks costs: a model of it, its calibration, and its predictions."""

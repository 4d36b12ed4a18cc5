"""Normalisation over the channels."""

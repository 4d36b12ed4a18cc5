"""Maxima and means over windows."""

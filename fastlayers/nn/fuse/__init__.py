"""Layers that wait for what follows them, and run as one."""

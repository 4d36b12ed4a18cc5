"""Side-by-side comparisons with other frameworks."""

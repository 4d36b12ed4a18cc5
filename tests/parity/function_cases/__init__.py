"""Rows of functions and their arguments, for `test_functions`; a file for each of the library's."""

"""Measurements: each script prints its figures as JSON, with the error next to the speed."""

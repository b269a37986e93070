"""The recurrence, slow and obvious, and its fast forms."""

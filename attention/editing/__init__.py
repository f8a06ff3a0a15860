"""Editing for people: sources, chains of changes, photos, recipes."""

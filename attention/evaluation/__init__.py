"""Measures of edits: against exact truth on drawn faces, by the published protocol on real pictures."""

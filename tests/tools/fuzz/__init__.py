"""Bounded, seeded fuzzing of every verb. `.ci/fuzz` runs it; CAMPAIGNS of campaigns.py is its table."""

"""Searches and studies over whole train-and-judge runs."""

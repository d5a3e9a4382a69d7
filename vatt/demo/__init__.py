"""The demo: a synthetic corpus, a training run on it, and a report.

Imports `runs` and below. Start with `run.main`; `corpus` draws the videos.
"""

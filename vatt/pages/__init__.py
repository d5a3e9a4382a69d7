"""HTML pages, written from plain data.

Imports `media` and below. Callers collect the content of a page. Start with `report.write_report`.
"""

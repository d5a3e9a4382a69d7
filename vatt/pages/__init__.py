"""HTML pages, written from plain data.

Imports `media` and below; what a page shows is gathered by its callers. Start with
`report.write_report`.
"""

"""This machine: files, worker processes, ranks, devices and versions.

Knows nothing of media or models. Imports `vatt.errors` only. Start with `workers.results_in_order`
and `files`.
"""

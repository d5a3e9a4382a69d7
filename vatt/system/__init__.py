"""Files, worker processes, ranks, devices and versions of this machine.

Independent of media and models. Imports `vatt.errors` only. Start with `workers.results_in_order`
and `files`.
"""

"""The check of a GPU, `vatt doctor --gpu`: is training right on it, how fast, how much memory?

Start with `vatt.gpu_check.check`, which runs the stages of `vatt.gpu_check.stages` one by one, each
in a process of its own. A stage yields the figures of `vatt.gpu_check.figures`.
"""

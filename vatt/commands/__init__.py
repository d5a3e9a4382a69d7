"""Commands of `vatt`; each is a function whose signature defines the arguments.

Heavy imports are inside the functions, so that `--help` is fast. Imports all rooms except `demo`.
`vatt.cli` finds the command.
"""

"""The commands of `vatt`: arguments become one call each.

A command's heavy imports stand inside its function, so that `--help` answers at once. Imports
all rooms but `demo`. `vatt.cli` finds the command.
"""

"""What people type: the verbs of `blip`, their flags and what they print.

In: a command line. Out: calls of the other rooms, an exit code, messages that a tired person understands.
Open first: main.py, then the verbs of a group, as data.py.
"""

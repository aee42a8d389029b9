"""How a process runs and shows itself: cores, children, progress, cost. Decides no number, so DVC does not watch it.

In: the machine's limits. Out: numbers of threads, progress lines, times of stages.
Open first: cores.py.
"""

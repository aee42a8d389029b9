"""What became of a text and why, and what a round did to all of them. Decides nothing.

In: caption tables of the rounds. Out: a history, a rule in numbers, a description of a round.
Open first: history.py.
"""

"""Which candidate texts make the next generation, and how much noise that leaves.

In: scored candidates, planted pairs, labels of people. Out: calibrated P(match), each text's fate and reason, a bound on the noise.
Open first: choice.py.
"""

"""The game that WaltzRL trains (arXiv 2510.08240, section 3): one agent answers, the other reviews, until the review is
satisfied or the rounds are used up.

moves    the rules, as pure functions
play     the driver that plays many games as batches
"""

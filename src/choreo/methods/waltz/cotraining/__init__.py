"""Adversarial training of the pair: an attacker learns beside it, and the pair learns on some prompts in its words.

settings  the [attack] section of a recipe
schedule  which steps and which prompts: pure functions
attacker  the attacker of a run, and those that it was before
report    how often it won, in the summary and on the page
"""

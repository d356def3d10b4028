"""What an attacker of a pair does and learns: it writes prompts in other words.

The method `attacker` trains one against a pair that does not learn, `waltz` one beside the pair that it trains.

settings  how an attacker learns
words     a prompt in its words, and what a try in them is paid
learning  its warm start and its updates
"""

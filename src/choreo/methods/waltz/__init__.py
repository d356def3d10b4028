"""WaltzRL (arXiv 2510.08240): a conversation agent and a feedback agent, trained together by reinforcement learning.

To read it, begin at the top; a file uses only files above it. The game that both play is in `choreo.game`, the
estimators of advantages are in `choreo.algorithms`.

recipe    the settings
chance    random numbers that follow from a name
rewards   the equations of both agents' rewards
samples   games split into single-agent samples
agents    the pair, loaded
alarms    signs of collapse
figures   what is recorded and shown of a step
cotraining/  an attacker that learns beside the pair
trainer   the steps, one after the other
systems   a blocking safeguard, and feedback from true labels
measure   the systems of the paper's table
report    the curves that the report shows
method    what choreo asks of it
"""

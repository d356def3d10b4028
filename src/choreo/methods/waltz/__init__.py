"""WaltzRL (arXiv 2510.08240): a conversation agent and a feedback agent, trained together by reinforcement learning.

To read it, begin at the top; a file uses only files above it. The game that both play is in `choreo.game`, the
estimators of advantages are in `choreo.algorithms`.

elsewhere        what a recipe may not ask for where a service has the weights
recipe           the settings; those of warmup/ and cotraining/ are in their folders
chance           random numbers that follow from a name
rewards          the equations of both agents' rewards
samples          games split into single-agent samples
alarms           signs of collapse
figures          what is recorded and shown of a step
pair             what both agents have in common, wherever their weights are
agents           a pair that is loaded here
remote           a pair whose weights a service has
pairs            which of the two a recipe means
batches          which prompts a step plays
system_messages  prompts under system messages of callers
work             what a step computes, for `choreo plan`
warmup/          supervised learning of reviews, before the first step
cotraining/      an attacker that learns beside the pair
player           who plays a step's games: the pair as it is now, or a second process one step ahead
trainer          the steps, one after the other
systems          a blocking safeguard, and feedback from true labels
measure          the systems of the paper's table
report           the curves that the report shows
method           what choreo asks of it
"""

"""The warm start of WaltzRL's feedback agent: supervised learning of reviews, before reinforcement learning.

A model that cannot write one review that parses is paid nothing for any, so RL has nothing to reinforce. The field
calls this a cold-start SFT (DeepSeek-R1, arXiv 2501.12948, section 2.3). To read it, begin at the top:

settings  the [warmup] section of a recipe
answers   what it learns from: labelled answers, answers that the judge labels, the model's own
draw      which of them are kept aside, and which an epoch takes
measure   how well the agent reviews answers that were kept aside
train     the warm start as a run of its own, in the run's folder
report    what the run's report says of it
"""

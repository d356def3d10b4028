"""A trained attacker: a policy that rewrites prompts, rewarded where a frozen pair's final answer is bad.

recipe  the settings
play    the pair that is attacked, and the attacker as an agent
method  what choreo asks of it: a warm start on rewordings, then GRPO
"""

"""A trained attacker: a policy that rewrites harmful prompts, rewarded where a frozen pair's final answer is unsafe.

recipe  the settings
play    its rewritten prompts, played against the pair
method  what choreo asks of it: a warm start on rewordings, then GRPO
"""

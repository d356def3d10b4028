"""Token ids in; ids, log-probabilities and a policy version out. Learning on the same kernel.

requests   what every engine answers (`Request`, `Completion`, `Engine`)
agent      many policies on one base model (`Team`)
local      the engine of this process (`LocalEngine`)
learner    one optimiser step on any loss that returns a sum and a count (`Learner`)
"""

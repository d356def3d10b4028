"""Sampling, scoring and learning on token ids. All three take log-probabilities from the same kernel (score.py).

requests   the interface of every engine (`Request`, `Completion`, `Engine`)
agent      many policies on one base model (`Team`)
local      the engine of this process (`LocalEngine`)
vllm       one whose samples come from vLLM servers (`VllmEngine`)
llama      one whose samples come from llama.cpp servers (`LlamaEngine`)
remote     one whose base and adapters a service has (`RemoteEngine`)
rollouts   which of them a recipe asks for
learner    one optimiser step on any loss that returns a sum and a count (`Learner`)
"""
